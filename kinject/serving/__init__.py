"""Answering texts with a host, with or without plugins: the Python API behind `kinject predict`.

host = kinject.Host.load("runs/quickstart/host")
host.plug("runs/quickstart/biology_plugin", knowledge="runs/quickstart/biology/knowledge")
for answer in host.stream(records):
    print(answer.label, answer.score, answer.entities)
with host.unplugged():
    print(host.predict("the otter is a kind of [MASK] .").label)
"""

from kinject.plugins.map_files import export_map
from kinject.serving.evaluation import Evaluation
from kinject.serving.host import Host
from kinject.serving.plugin import Plugin
from kinject.serving.queries import Contribution, Explanation, Label, Linked, Prediction, Refused

__all__ = [
    "Contribution",
    "Evaluation",
    "Explanation",
    "Host",
    "Label",
    "Linked",
    "Plugin",
    "Prediction",
    "Refused",
    "export_map",
]
