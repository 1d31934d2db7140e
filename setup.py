"""What pyproject.toml cannot say: the folder configs/ is shipped as psf/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["psf", "psf.*"]), "psf.configs"],
    package_dir={"psf.configs": "configs"},
    package_data={"psf": ["py.typed"], "psf.configs": ["**/*.yaml", "lazy/*.py"], "psf.tools.serving": ["page/*"]},
)
