"""Corpus + targets -> checkpoint: masked prediction of cluster ids (HuBERT, section 2.2)."""
