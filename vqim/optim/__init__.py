"""Optimizers, learning-rate schedules, parameter groups and gradient norms."""
