"""Model files and example inputs; nothing in a file is executed unless the user asks for it.

    files     what a file is, told by its content
    archive   torch.export archives, checked before torch reads them
    models    load_model: any model file -> LoadedModel
    factory   parse_factory: "package.module:name" -> callable
    shapes    parse_shape: "name=3,224,224:float32" -> InputShape
    examples  example_batch: files or shapes -> inputs and targets of one batch

`factory`, `files` and `shapes` do not import torch, so that arguments are checked at once.
"""
