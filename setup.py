"""What pyproject.toml cannot say: the folders configs/ and tools/ are shipped as psf/configs and psf/tools."""

from pathlib import Path

from setuptools import find_packages, setup

# So `python -m psf.tools.validate_dataset` works from a wheel. The quickstart drives scripts of the repository.
TOOLS = sorted({path.stem for path in Path("tools").glob("*.py")} - {"quickstart"})

setup(
    packages=[*find_packages(include=["psf", "psf.*"]), "psf.configs"],
    py_modules=[f"psf.tools.{name}" for name in TOOLS],
    package_dir={"psf.configs": "configs", "psf.tools": "tools"},
    package_data={"psf": ["py.typed"], "psf.configs": ["**/*.yaml", "lazy/*.py"]},
)
