"""Execute notebooks at full size and store them with their outputs: `python notebooks/execute.py [NAME.ipynb ...]`.

No times and no widgets are stored; what a widget shows stands beside it as a static figure.
"""

import os
import sys
from pathlib import Path

import nbformat
import zmq
from nbclient import NotebookClient
from nbclient.output_widget import OutputWidget

HERE = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def notice_replies():
    """Have nbclient notice a reply that arrives while it sends a widget what was printed.

    Both go over one socket: what is sent takes the reply in, and nobody wakes up who waits for it, until the timeout of
    the cell ends. Looking at the socket's events wakes them.
    """
    send = OutputWidget.send

    def send_and_look(widget, *content, **options):
        send(widget, *content, **options)
        widget.kernel_client.shell_channel.socket.get(zmq.EVENTS)

    OutputWidget.send = send_and_look


def execute(path):
    """In an empty process, from the folder of the notebook."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, record_timing=False).execute(cwd=str(HERE))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata = {}
            cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


if __name__ == "__main__":
    notice_replies()
    os.environ.pop("NFD_SMALL", None)
    for path in map(Path, sys.argv[1:] or sorted(map(str, HERE.glob("*.ipynb")))):
        print(path.name, flush=True)
        execute(path)
