"""Simulators: the real deciding code under virtual time, at sizes no machine here could run."""
