import logging
import os
import subprocess
import sys
import warnings

import pytest

from prunekit.cli.libraries import NO_BARS, OFFLINE, SILENT, quiet_libraries


def test_warnings_and_logging_are_silent_inside_and_as_before_outside(capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    with quiet_libraries(verbose=False, offline=False):
        warnings.warn("unheard", UserWarning, stacklevel=1)
        logging.getLogger("transformers.some").warning("unheard")
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert dict(os.environ) == before
    assert logging.root.manager.disable == logging.NOTSET
    assert capfd.readouterr() == ("", "")


def test_verbose_lets_them_speak_but_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SILENT, *NO_BARS):
        monkeypatch.delenv(name, raising=False)
    with quiet_libraries(verbose=True, offline=False):
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
        assert "TRANSFORMERS_VERBOSITY" not in os.environ
        with pytest.warns(UserWarning, match="heard"):
            warnings.warn("heard", UserWarning, stacklevel=1)


def test_what_the_user_has_set_stays_but_offline_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with quiet_libraries(verbose=False, offline=True):
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
        assert {name: os.environ[name] for name in OFFLINE} == OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_a_real_import_of_transformers_and_datasets_says_nothing() -> None:
    program = (
        "from prunekit.cli.libraries import quiet_libraries\n"
        "with quiet_libraries(False, True):\n"
        "    import transformers, datasets\n"
        "    from tqdm.auto import tqdm\n"
        "    list(tqdm(range(3)))\n"
        "    transformers.utils.logging.get_logger('transformers').warning('unheard')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert (done.stdout, done.stderr) == ("", "")
