"""The fully connected network under the loss: parameters, backpropagation, memory, files."""
