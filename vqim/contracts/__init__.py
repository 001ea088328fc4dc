"""Protocols that the packages of vqim agree on, and the plain data that pass between them. Imports only `state`."""
