"""Audit of the data before the first training step: missing, one-sided, implausible or leaking values."""

from llueve.audit.report import Audit, audit_concatenated, audit_panel, render

__all__ = ["Audit", "audit_concatenated", "audit_panel", "render"]
