"""The bundled sample model: a Llama of five million parameters that every command can run on, offline.

`PATH` is an ordinary Hugging Face model folder; `README.md` beside it is the model card.
"""

from pathlib import Path

PATH = Path(__file__).resolve().parent
