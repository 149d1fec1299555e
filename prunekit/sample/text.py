"""The text the sample model was trained on, and the text it never saw: the standard library's own source.

Every Python carries it, so training, calibration and perplexity need no download. The modules are a fixed
list of those found in every CPython from 3.11 to 3.14; their files are read, never imported.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.machinery import PathFinder
from typing import Literal

from prunekit.errors import InputError

Split = Literal["train", "held-out"]

_HELD_OUT = """
argparse csv difflib fnmatch heapq shutil statistics textwrap
asyncio.tasks email.message http.cookiejar logging.handlers unittest.case urllib.robotparser
xml.etree.ElementPath
"""

_TRAIN = """
__future__ _collections_abc _compat_pickle _markupbase _osx_support _py_abc _pydecimal _pyio _sitebuiltins
_strptime _threading_local _weakrefset abc ast base64 bdb bisect bz2 cProfile calendar cmd code codecs
codeop colorsys compileall configparser contextlib contextvars copy copyreg dataclasses datetime decimal dis
doctest enum filecmp fileinput fractions ftplib functools genericpath getopt getpass gettext glob graphlib
gzip hashlib hmac imaplib inspect io ipaddress keyword linecache lzma mailbox mimetypes modulefinder netrc
ntpath numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib
posixpath pprint profile pstats pty py_compile pyclbr pydoc queue quopri random reprlib rlcompleter runpy
sched secrets selectors shelve shlex signal site smtplib socket socketserver ssl stat string stringprep
struct subprocess symtable sysconfig tabnanny tarfile tempfile this threading timeit token tokenize trace
traceback tracemalloc tty types typing uuid warnings wave weakref webbrowser zipapp zipfile zipimport
asyncio asyncio.base_events asyncio.base_futures asyncio.base_subprocess asyncio.base_tasks
asyncio.constants asyncio.coroutines asyncio.events asyncio.exceptions asyncio.format_helpers
asyncio.futures asyncio.locks asyncio.log asyncio.mixins asyncio.proactor_events asyncio.protocols
asyncio.queues asyncio.runners asyncio.selector_events asyncio.sslproto asyncio.staggered asyncio.streams
asyncio.subprocess asyncio.taskgroups asyncio.threads asyncio.timeouts asyncio.transports asyncio.trsock
asyncio.unix_events asyncio.windows_events asyncio.windows_utils
collections concurrent.futures concurrent.futures._base concurrent.futures.process concurrent.futures.thread
ctypes ctypes._endian ctypes.util ctypes.wintypes curses curses.ascii curses.has_key curses.textpad dbm
dbm.dumb
email email._encoded_words email._header_value_parser email._parseaddr email._policybase email.base64mime
email.charset email.contentmanager email.encoders email.errors email.feedparser email.generator email.header
email.headerregistry email.iterators email.mime.application email.mime.audio email.mime.base
email.mime.image email.mime.message email.mime.multipart email.mime.nonmultipart email.mime.text
email.parser email.policy email.quoprimime email.utils encodings encodings.idna encodings.punycode
html html.parser http http.client http.cookies http.server
importlib importlib._bootstrap importlib._bootstrap_external importlib.abc importlib.machinery
importlib.metadata importlib.metadata._adapters importlib.metadata._collections
importlib.metadata._functools importlib.metadata._itertools importlib.metadata._meta
importlib.metadata._text importlib.resources importlib.resources._adapters importlib.resources._common
importlib.resources.abc importlib.resources.readers importlib.util
json json.decoder json.encoder json.scanner json.tool logging logging.config
multiprocessing multiprocessing.connection multiprocessing.context multiprocessing.dummy
multiprocessing.dummy.connection multiprocessing.forkserver multiprocessing.heap multiprocessing.managers
multiprocessing.pool multiprocessing.popen_fork multiprocessing.popen_forkserver
multiprocessing.popen_spawn_posix multiprocessing.popen_spawn_win32 multiprocessing.process
multiprocessing.queues multiprocessing.reduction multiprocessing.resource_sharer
multiprocessing.resource_tracker multiprocessing.shared_memory multiprocessing.sharedctypes
multiprocessing.spawn multiprocessing.synchronize multiprocessing.util
pydoc_data.topics re re._casefix re._compiler re._constants re._parser sqlite3 sqlite3.dbapi2 sqlite3.dump
tomllib tomllib._parser tomllib._re unittest unittest._log unittest.async_case unittest.loader unittest.main
unittest.mock unittest.result unittest.runner unittest.signals unittest.suite unittest.util
urllib.error urllib.parse urllib.request urllib.response wsgiref wsgiref.handlers wsgiref.headers
wsgiref.simple_server wsgiref.types wsgiref.util wsgiref.validate
xml xml.dom xml.dom.NodeFilter xml.dom.domreg xml.dom.expatbuilder xml.dom.minicompat xml.dom.minidom
xml.dom.pulldom xml.dom.xmlbuilder xml.etree.ElementInclude xml.etree.ElementTree xml.sax
xml.sax._exceptions xml.sax.expatreader xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client
xmlrpc.server zoneinfo zoneinfo._common zoneinfo._tzpath zoneinfo._zoneinfo
"""

MODULES: dict[Split, Sequence[str]] = {"train": _TRAIN.split(), "held-out": _HELD_OUT.split()}
TOPICS = "pydoc_data.topics"  # what help() prints: the language reference, as one dict of strings


@dataclass(frozen=True)
class Document:
    """One module's text, under the module's name."""

    name: str
    text: str


def documents(split: Split) -> list[Document]:
    """The documents of one split, in the order of its list."""
    return [Document(name, _text(name)) for name in MODULES[split]]


def _text(name: str) -> str:
    loader = _loader(name)
    source = loader.get_source(name) if isinstance(loader, InspectLoader) else None
    if source is None:
        raise InputError(
            f"no source found for the standard library's module {name}, which the sample text needs",
            hint="use a CPython 3.11 or later that ships its .py files",
        )
    return _reference(source) if name == TOPICS else source


def _loader(name: str) -> object | None:
    """The module's loader, looked up part by part below the standard library's folder; nothing is imported.

    `importlib.util.find_spec` would import parent packages, meet frozen modules (which have no source) and
    prefer a stranger's `random.py` in the current folder.
    """
    spec = None
    folders: Sequence[str] = [sysconfig.get_path("stdlib")]
    for depth in range(1, name.count(".") + 2):
        spec = PathFinder.find_spec(".".join(name.split(".")[:depth]), folders)
        if spec is None:
            return None
        folders = spec.submodule_search_locations or []
    return spec.loader if spec else None


def _reference(source: str) -> str:
    """The help topics as prose, each paragraph once: topics quote one another at length."""
    assignment = next(node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    paragraphs = "\n\n".join(ast.literal_eval(assignment.value).values()).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs)) + "\n"
