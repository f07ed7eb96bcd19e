"""How fast it is here and elsewhere: measurements, the cost model, and the machines it knows."""
