"""The paper's tables, and what else this repository claims, as commands that anyone can run again."""
