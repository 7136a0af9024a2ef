"""Training a VQGAN: `toklip train vq`.

    task.py          the training of a VQGAN       samples.py  scenes, crops of photographs, and folders
    quantization.py  gradients of the quantizers   losses.py   discriminator and adversarial losses
    settings.py      settings and recipes

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
