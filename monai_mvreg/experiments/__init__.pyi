"""Experiments: trainings, one or many."""
