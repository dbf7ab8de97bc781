"""What stands behind the notebooks; read `config.py` first."""
