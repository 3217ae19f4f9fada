"""Items and rules of the public benchmarks, one module each, and of your own comparisons."""
