"""The house keeps its shape: what must not exist, who imports whom, how long a file may be."""

import ast
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "platform" / "triune"


def test_the_source_root_is_no_package():
    """With platform/__init__.py, `import platform` would find our folder before the standard library's module,
    and torch, pytest and pip, which call platform.system(), would die when run from the repository's root."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert Path(platform.__file__).parent == Path(sysconfig.get_paths()["stdlib"])


def test_platform_is_the_standard_librarys_from_the_repository_root():
    code = "import platform; print(platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == platform.system()


@pytest.mark.parametrize("init", sorted(SOURCE.rglob("__init__.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_package_inits_import_nothing_heavy(init):
    """An __init__ is empty or holds only lazily imported names, so that importing a config never imports torch."""
    for node in ast.walk(ast.parse(init.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module in ("__future__", "triune.lazy", "triune", "typing"), f"{init} imports {module}"


def test_no_file_is_longer_than_400_lines_without_a_reason():
    for file in [*SOURCE.rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        text = file.read_text()
        if len(text.splitlines()) > 400:
            head = "\n".join(text.splitlines()[:12])
            assert "Longer than 400 lines because" in head, f"{file}: split it, or give the reason at its top"


def test_the_torch_free_half_imports_no_torch():
    """`triune --help`, dry configuration errors and launchers start in a blink."""
    code = (
        "import sys, triune.cli, triune.experiment, triune.models.config, triune.models.checks\n"
        "bad = sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'lightning', 'transformers', 'wandb'})\n"
        "print(','.join(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_malicious_lightning_releases_are_excluded_by_name():
    project = (ROOT / "pyproject.toml").read_text()
    assert "!=2.6.2" in project
    assert "!=2.6.3" in project
    lock = (ROOT / "requirements.lock").read_text()
    assert "lightning==2.6.2\n" not in lock
    assert "lightning==2.6.3\n" not in lock
