from importlib.metadata import version
from pathlib import Path


def main() -> None:
    print(f"editable-root {version('editable-root')} runs from {Path(__file__).parent}")
