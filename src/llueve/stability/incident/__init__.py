"""An incident: a training step that was refused, kept whole, and run again bit for bit.

`RUN/incidents/001/`, `002/`, … hold what is needed, and no other file is:

| file | content |
| --- | --- |
| `batch.safetensors` | what the model was given, and which window of which site each sample is |
| `before.safetensors` | every weight and buffer; a refused step does not change them |
| `optimiser.safetensors` | moments and step counts, as `PARAMETER.exp_avg` and the like |
| `random.safetensors` | the random generators before the forward pass |
| `incident.json` | everything else, with a hash of each file and of itself; written last, so without it the rest is torn |
| `explanation.json` | what the training loop found out about it, if it looked; checked as it is read |

Nothing in them is run when they are read. Shapes: B batch, L steps, C variables, F facts, K classes.
"""

from llueve.stability.incident.description import Description, Incident
from llueve.stability.incident.explaining import Told, explain_incident, render_explanation
from llueve.stability.incident.keeping import keep_incident
from llueve.stability.incident.reading import Listed, list_incidents, load_incident
from llueve.stability.incident.render import render_description, render_list
from llueve.stability.incident.replay import Replayed, as_it_was, replay
from llueve.stability.incident.stored import read_explanation, write_explanation
from llueve.stability.incident.whole_run import ToldRun, explain_run, render_run

__all__ = [
    "Description",
    "Incident",
    "Listed",
    "Replayed",
    "Told",
    "ToldRun",
    "as_it_was",
    "explain_incident",
    "explain_run",
    "keep_incident",
    "list_incidents",
    "load_incident",
    "read_explanation",
    "render_description",
    "render_explanation",
    "render_list",
    "render_run",
    "replay",
    "write_explanation",
]
