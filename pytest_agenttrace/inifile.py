"""What a project's pytest configuration says, for the command line: read from the files, without starting pytest."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ConfigurationError", "Project", "find_project", "unquoted"]

# In the order in which pytest looks, each with the tables that make it pytest's.
_FILES = (
    ("pytest.toml", ("pytest",)),
    (".pytest.toml", ("pytest",)),
    ("pytest.ini", ("pytest",)),
    (".pytest.ini", ("pytest",)),
    ("pyproject.toml", ("tool.pytest.ini_options", "tool.pytest")),
    ("tox.ini", ("pytest",)),
    ("setup.cfg", ("tool:pytest",)),
)


class ConfigurationError(ValueError):
    """A configuration file that cannot be read; the message starts with its path."""


class Project:
    """A folder with pytest's configuration, or without any: its `root`, and its ini keys."""

    def __init__(self, root: Path, file: Path | None = None, keys: dict[str, str] | None = None) -> None:
        self.root = root
        self.file = file
        self._keys = keys or {}

    def get(self, key: str, default: str) -> str:
        """The value of an ini key, or the default where it is not there or empty."""
        return unquoted(self._keys.get(key, "")) or default


def unquoted(value: str) -> str:
    """An ini key's value. In pytest.ini quotes are characters like any other; nobody means them."""
    value = value.strip()
    return value[1:-1].strip() if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def find_project(start: Path) -> Project:
    """The configuration that pytest would use in this folder: the nearest one, here or above. Raises
    `ConfigurationError`."""
    for folder in (start, *start.parents):
        for name, tables in _FILES:
            file = folder / name
            if file.is_file() and (keys := _read(file, tables)) is not None:
                return Project(folder, file, keys)
    return Project(start)


def _read(file: Path, tables: tuple[str, ...]) -> dict[str, str] | None:
    """The keys of pytest's table; None where the file has none. A pytest.ini is pytest's also when it is empty, a
    pytest.toml too."""
    import configparser

    try:
        text = file.read_text(encoding="utf-8")
        found = _toml(text, tables) if file.suffix == ".toml" else _ini(text, tables)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, configparser.Error) as error:
        raise ConfigurationError(f"{file}: {str(error).splitlines()[0]}") from None
    return {} if found is None and file.stem.endswith("pytest") else found


def _toml(text: str, tables: tuple[str, ...]) -> dict[str, str] | None:
    import tomllib

    data = tomllib.loads(text)
    for table in tables:
        found: object = data
        for part in table.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return {str(key): value for key, value in found.items() if isinstance(value, str)}
    return None


def _ini(text: str, tables: tuple[str, ...]) -> dict[str, str] | None:
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return dict(parser.items(tables[0])) if parser.has_section(tables[0]) else None
