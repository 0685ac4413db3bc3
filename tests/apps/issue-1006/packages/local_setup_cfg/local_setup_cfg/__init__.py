NUMBER = 40


def answer() -> str:
    import local_hatchling
    import local_setuptools

    parts = [NUMBER, local_setuptools.NUMBER, local_hatchling.NUMBER]
    return f"{parts[0]} (setup.cfg) + {parts[1]} (setuptools) + {parts[2]} (hatchling) = {sum(parts)}"


def main() -> None:
    print(answer())
