"""Everything that can be known before the first step: what is missing, one-sided, absurd, or too good to be true."""

from llueve.audit.report import Audit, audit_laid_end_to_end, audit_panel, render

__all__ = ["Audit", "audit_laid_end_to_end", "audit_panel", "render"]
