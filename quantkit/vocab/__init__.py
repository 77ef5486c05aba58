"""Vocabularies: what llama.cpp knows of them as data, and one file for each way they are kept."""
