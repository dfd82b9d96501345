"""What outwits XLA: computations that the encoder could leave to the compiler, written out because that was measured
to be slower.
"""
