"""Segments images: ``python use.py IMAGE ... --output DIR``. Needs numpy, pillow, torch and monai.

It does what ``monai.bundle.run(config_file="configs/inference.json", images=FOLDER, output=DIR)`` does in this folder.
"""

import sys
from pathlib import Path

from monai.bundle import ConfigParser

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

parser = ConfigParser()
parser.read_config(str(HERE / "configs" / "inference.json"))
parser["bundle_root"] = str(HERE)
pipeline = parser.get_parsed_content("pipeline")

if __name__ == "__main__":
    from scripts import portable

    portable.run(pipeline.probabilities, pipeline.settings, sys.argv[1:])
