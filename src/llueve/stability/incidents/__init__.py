"""Incidents: refused training steps, kept whole so that they can be replayed bit for bit.

`RUN/incidents/001/`, `002/`, … hold one step each. `step.safetensors` is one sealed file with the batch and its windows,
every weight and buffer, the optimiser's moments, the random generators and a description. `explanation.json` holds the
findings of the training about the step, if it searched for the cause.

Reading an incident executes nothing in it. Shapes: B batch, L steps, C variables, F facts, K classes.
"""

from llueve.stability.incidents.explain import explain_incident
from llueve.stability.incidents.explain_run import explain_run
from llueve.stability.incidents.explanation_file import write_explanation
from llueve.stability.incidents.format import DataNames
from llueve.stability.incidents.parse import list_incidents, load_incident
from llueve.stability.incidents.render import render_description, render_explanation, render_list, render_run
from llueve.stability.incidents.replay import replay
from llueve.stability.incidents.write import IncidentFolder, keep_incident

__all__ = [
    "DataNames",
    "IncidentFolder",
    "explain_incident",
    "explain_run",
    "keep_incident",
    "list_incidents",
    "load_incident",
    "render_description",
    "render_explanation",
    "render_list",
    "render_run",
    "replay",
    "write_explanation",
]
