"""The Python API that needs no config file: a plugin tuned, averaged and evaluated by the code that runs configs.

host = kinject.Host.load("my/classifier")
base = kinject.KnowledgeBase.open("my/knowledge")
plugin = kinject.tune(host, base, records, dev=dev_records)
print(plugin.evaluate(host, base, test_records))
plugin.save("my/plugin")
print(host.plug(plugin).predict("Please call Zisolrik back.").label)
"""

from kinject.api.average import average
from kinject.api.tune import tune

__all__ = ["average", "tune"]
