"""A CUDA device for tests, on a machine without one: its tensors say cuda:0, hold values, and are computed on
the CPU.

As on a real one, tensors of two devices in one operation are refused, autocast is CUDA's (whose list of
operations in float32 is not a CPU's), memory is counted and can end, and what makes the host wait for the
device is noted. What it cannot show: speed, and the rounding of CUDA's kernels.

    import fake_cuda                         # before torch: see fake_cuda_guard.cpp, which needs g++
    with fake_cuda.gpu(bf16=True) as device:
        torch.ones(3, device="cuda").sum().item()
    assert len(device.waits) == 1
"""
import collections
import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def load_guard() -> ctypes.CDLL:
    """Return the compiled fake_cuda_guard.cpp, loaded: once torch has looked for CUDA, it is too late."""
    if "torch" in sys.modules:
        raise ImportError("fake_cuda has to be imported before torch")
    source = Path(__file__).with_name("fake_cuda_guard.cpp")
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        subprocess.run(["g++", "-shared", "-fPIC", "-O0", "-std=c++20", f"-I{torch_folder}/include",
                        f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-o", str(library),
                        str(source), "-lc10", "-ltorch_cpu"], check=True)
        return ctypes.CDLL(str(library), mode=os.RTLD_GLOBAL)


GUARD = load_guard()

import peft  # noqa: E402  behind the guard, as all that imports torch
import torch  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402
from torch.utils._python_dispatch import (  # noqa: E402
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)

HERE = torch.device("cuda", 0)
# Operations that take tensors of two devices on real CUDA too, and those that take an index of the CPU.
TWO_DEVICES = {"copy_", "_to_copy", "set_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# Operations whose result, or its size, the host has to know before it goes on.
READ_BY_THE_HOST = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2",
                    "unique_consecutive", "repeat_interleave"}
STAGES = ("pipeline", "transformers", "peft", "accelerate", "bitsandbytes", "optim")  # named where they wait


class CudaTensor(torch.Tensor):
    """A tensor of the device; `values` is a tensor of the CPU."""

    __slots__ = ("values",)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type, values: Any) -> "CudaTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, layout=values.layout, device=HERE)
        made.values = values
        DEVICE.allocated(values.untyped_storage())
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return DEVICE.run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"CudaTensor({self.values})"

    def __deepcopy__(self, memo: dict) -> Any:
        twin = CudaTensor(self.values.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(twin, self.requires_grad)
        return twin.requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:  # what torch.save writes
        return self.values.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        DEVICE.wait("tolist")
        return self.values.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")


class Device(TorchDispatchMode):
    """The device: runs the operations, and keeps what happened.

    `waits`: (what, the line that asked) of each time that the host waited; `made`: how often an operation
    gave which dtype; `memory`, `peak`: bytes in use, and the most of it.  Set `fail_at` to let the memory end
    at the operation of that number, counted from `operations` = 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}
        self.memory = 0
        self.reset()

    def reset(self) -> None:
        """Forget what happened; what is in memory stays."""
        self.waits: list[tuple[str, str]] = []
        self.made: collections.Counter = collections.Counter()
        self.operations, self.fail_at, self.peak = 0, 0, self.memory
        self.pinned: set[int] = set()  # storages

    def forget_peak(self) -> None:
        self.peak = self.memory

    def allocated(self, storage: Any) -> None:
        """Count a storage of the CPU as memory of the device, until it is let go."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages[key] = size
        self.memory += size
        self.peak = max(self.peak, self.memory)
        weakref.finalize(storage, self.freed, key)

    def freed(self, key: int) -> None:
        self.memory -= self.storages.pop(key)

    def wait(self, what: str) -> None:
        """Note that the host waits for the device."""
        lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()
                 if any(f"/{name}/" in frame.filename for name in STAGES)]
        self.waits.append((what, lines[-1] if lines else "a test"))

    def pin(self, tensor: Any) -> Any:
        """Return a tensor of the CPU in memory that the device reads by itself."""
        twin = tensor.clone()
        storage = twin.untyped_storage()
        self.pinned.add(storage._cdata)
        weakref.finalize(storage, self.pinned.discard, storage._cdata)
        return twin

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.run(func, args, kwargs or {})

    def check(self, name: str, args: tuple, kwargs: dict, here: list, there: list) -> None:
        """Refuse what CUDA refuses, and note what waits."""
        if here and there and name not in TWO_DEVICES:
            if name not in INDEXED or not isinstance(args[0], CudaTensor):
                raise RuntimeError("Expected all tensors to be on the same device, but found at least two "
                                   f"devices, cuda:0 and cpu! (aten::{name})")
            self.wait(f"{name}, with an index of the CPU")
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if here and name in READ_BY_THE_HOST:
            self.wait(name)
        elif here and name in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8)
                                              for i in args[1]):
            self.wait(f"{name}, with a mask")
        elif here and name == "_to_copy" and target is not None and target.type == "cpu":
            self.wait("copy to the CPU")
        elif there and ((name == "_to_copy" and target is not None and target.type == "cuda")
                        or (here and name == "copy_")):
            # only what lies in pinned memory is copied while the host goes on
            flag = args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False)
            source = args[name == "copy_"]
            if source.numel() and not (flag and source.untyped_storage()._cdata in self.pinned):
                self.wait("copy to the device")

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Compute one operation by the CPU's kernel; its results are the device's if its tensors are."""
        name = func._schema.name.partition("::")[2]
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        here = [t for t in given if isinstance(t, CudaTensor)]
        there = [t for t in given if not isinstance(t, CudaTensor) and t.device.type == "cpu"
                 and (t.dim() or name == "_to_copy")]
        self.check(name, args, kwargs, here, there)
        device = kwargs.get("device")
        ours = torch.device(device).type == "cuda" if device is not None else (
            bool(here) and (name not in TWO_DEVICES or isinstance(args[0], CudaTensor)))
        if ours:
            self.operations += 1
            if self.operations == self.fail_at:
                raise torch.OutOfMemoryError("CUDA out of memory. (as a test asked)")
        plain = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        inner, options = pytree.tree_map(lambda t: t.values if isinstance(t, CudaTensor) else t,
                                         (args, plain))
        if device is not None:
            options["device"] = "cpu"
        if name in ("_softmax", "_log_softmax") and inner[2]:  # to float32 within the kernel: CUDA's alone
            inner = (inner[0].float(), inner[1], False)
        out = func(*inner, **options)
        if not ours:
            changes_ours = func._schema.is_mutable and here
            return return_and_correct_aliasing(func, args, kwargs, out) if changes_ours else out
        wrapped = pytree.tree_map(lambda t: CudaTensor(t) if type(t) is torch.Tensor else t, out)
        for tensor in pytree.tree_leaves(wrapped):
            if isinstance(tensor, CudaTensor):
                self.made[name, str(tensor.dtype).removeprefix("torch.")] += 1
        if name == "_to_copy" or not (here or func._schema.is_mutable):
            return wrapped
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


DEVICE = Device()


def move(module: Any) -> Any:
    """Move a module's parameters and buffers to the device in place, with what bitsandbytes keeps beside
    them; ties stay ties."""
    moved: dict[int, tuple[Any, Any]] = {}

    def there(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or isinstance(tensor, CudaTensor):
            return tensor
        if id(tensor) not in moved:
            made: Any = CudaTensor(tensor.detach().as_subclass(torch.Tensor).clone())
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            state = getattr(tensor, "quant_state", None)
            for part in (state, getattr(state, "state2", None)):
                for name in ("absmax", "code", "offset"):
                    if isinstance(getattr(part, name, None), torch.Tensor):
                        setattr(part, name, there(getattr(part, name)))
            if state is not None:
                made.quant_state, made.quant_type = state, tensor.quant_type
                made.compress_statistics = tensor.compress_statistics
            moved[id(tensor)] = made, tensor
        return moved[id(tensor)][0]

    with torch.no_grad():
        for child in module.modules():
            for store in (child._parameters, child._buffers, vars(child)):
                store.update({key: there(value) for key, value in store.items()
                              if isinstance(value, torch.Tensor)})
    return module


def loaded_by_the_cpu(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return `load` (from_pretrained) as it is without a device; what it loads is then moved if it asks for
    one."""
    def from_pretrained(*args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        available, torch.cuda.is_available = torch.cuda.is_available, lambda: False
        GUARD.use_devices(0)
        try:
            with _disable_current_modes():
                model = load(*args, **kwargs)
        finally:
            torch.cuda.is_available = available
            GUARD.use_devices(1)
        return move(model) if device_map is not None else model
    return from_pretrained


def module_to(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return Module.to, which moves to the device in place, and leaves a module that is there already as it
    is."""
    def to(module: Any, *args: Any, **kwargs: Any) -> Any:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cuda":
            move(module)
        stays = all((device is None or t.device.type == device.type) and
                    (dtype is None or dtype == t.dtype or not t.is_floating_point())
                    for t in (*module.parameters(), *module.buffers()))
        return module if stays else real(module, *args, **kwargs)
    return to


def cuda_functions(bf16: bool, free: int, count: int) -> dict[str, Any]:
    """Return the functions of torch.cuda that answer for the device."""
    state = torch.zeros(16, dtype=torch.uint8)
    return {"is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None,
            "device_count": lambda: count, "current_device": lambda: 0, "set_device": lambda device: None,
            "get_device_name": lambda *device: "a GPU for tests",
            "get_device_capability": lambda *device: (8, 9) if bf16 else (7, 5),
            "is_bf16_supported": lambda including_emulation=True: bf16 or including_emulation,
            "mem_get_info": lambda *device: (free, free), "memory_reserved": lambda *device: DEVICE.memory,
            "memory_allocated": lambda *device: DEVICE.memory,
            "max_memory_allocated": lambda *device: DEVICE.peak,
            "reset_peak_memory_stats": lambda *device: DEVICE.forget_peak(), "empty_cache": lambda: None,
            "ipc_collect": lambda: None, "synchronize": lambda *device: DEVICE.wait("synchronize"),
            "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None,
            "get_rng_state": lambda *device: state.clone(), "set_rng_state": lambda *state, **device: None,
            "get_rng_state_all": lambda: [state.clone()], "set_rng_state_all": lambda states: None}


@contextlib.contextmanager
def gpu(bf16: bool = True, free: int = 24_000_000_000, count: int = 1) -> Iterator[Device]:
    """Within the block there are `count` GPUs, of `free` bytes of free memory each, of which the first is
    used."""
    import bitsandbytes  # noqa: F401  these look for a device when they are imported
    import transformers.trainer

    with contextlib.ExitStack() as stack:
        def replace(owner: Any, name: str, value: Any) -> None:
            own = name in vars(owner)
            before = getattr(owner, name, None)
            setattr(owner, name, value)
            stack.callback(lambda: setattr(owner, name, before) if own else delattr(owner, name))

        for name, value in cuda_functions(bf16, free, count).items():
            replace(torch.cuda, name, value)
        for name in ("get_rng_state", "set_rng_state"):
            replace(torch.cuda.random, name, getattr(torch.cuda, name))
        replace(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        data_ptr = torch.UntypedStorage.data_ptr
        replace(torch.UntypedStorage, "data_ptr",
                lambda storage: storage._cdata if storage.device.type == "cuda" else data_ptr(storage))
        replace(torch.Tensor, "pin_memory", lambda tensor: DEVICE.pin(tensor))
        replace(torch.nn.Module, "to", module_to(torch.nn.Module.to))
        for loader in (transformers.AutoModelForCausalLM, peft.PeftModel):
            replace(loader, "from_pretrained", loaded_by_the_cpu(loader.from_pretrained))
        # views of such tensors cannot be made in inference mode
        replace(torch, "inference_mode", lambda mode=True: torch.no_grad())
        torch.autograd.set_multithreading_enabled(False)  # the device has no thread of its own
        stack.callback(torch.autograd.set_multithreading_enabled, True)
        lift = torch._C._only_lift_cpu_tensors()  # torch.tensor(..., device="cuda") is a copy that is seen
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        GUARD.use_devices(count)
        stack.callback(GUARD.use_devices, 0)
        DEVICE.reset()
        stack.enter_context(DEVICE)
        yield DEVICE
