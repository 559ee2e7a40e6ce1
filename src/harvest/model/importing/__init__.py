"""Models made elsewhere become ours, by family: files and names, tokenizers, rename tables, and a strict report."""
