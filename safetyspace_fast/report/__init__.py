"""Figures and pages made of a store."""
