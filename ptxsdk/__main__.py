"""``python -m ptxsdk``: the command line."""

from ptxsdk.cli import main

main()
