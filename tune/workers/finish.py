"""One process that ends a run of the confirmation as ``launch.train`` would: the test split, once, and the report."""

from __future__ import annotations

import sys

from launch.train import main
from tune.workers.child import die_with_parent, enter_folder, serve_store

if __name__ == "__main__":
    die_with_parent()
    enter_folder()
    store = serve_store()
    code = main(sys.argv[1:])
    del store
    sys.exit(code)
