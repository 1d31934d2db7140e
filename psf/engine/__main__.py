"""`python -m psf.engine`: what train_net.py does, where there is no checkout."""

from psf.engine import argument_parser, launch, main

if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
