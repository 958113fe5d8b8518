"""Builds the native libraries of llamba_kernels; pyproject.toml has the rest.

libllamba_cpu.so   csrc/common, every *_cpu.cpp, and every *_isa.cpp once per instruction set (avx512bf16: if it
                   says __AVX512BF16__). No torch.
_C.so              csrc/ops.cpp and every *_op.cpp, against torch's stable ABI. Links libllamba_cpu.so.
libllamba_cuda.so  every *_launch.cu and *_cuda.cpp. No torch. Only with nvcc; _C.so opens it at run time.

Environment: LLAMBA_CUDA=0|1|auto (auto: build it if nvcc is found), LLAMBA_CUDA_ARCHS="80 86 90a", MAX_JOBS, CXX,
CUDACXX or CUDA_HOME. Compiled files stay in build/, so that the next build compiles only what has changed.
Two variants for tests; `python setup.py build` puts a copy of the package beside whatever else is built:
LLAMBA_SANITIZE=address  into build/address/lib, its CPU libraries with AddressSanitizer and UndefinedBehaviorSanitizer
LLAMBA_SIMT=1            into build/simt/lib; libllamba_cuda.so is the CUDA kernels, built by the C++ compiler
                         for the executor of csrc/simt, and operators on CPU tensors run them. libllamba_cpu.so is the
                         ordinary one. Both: build/simt-address, where only libllamba_cuda.so has the sanitizers
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:  # older ones lack bdist_wheel or cannot read pyproject.toml
    raise SystemExit(
        f"llamba_kernels: setuptools must be 77 or newer (pip install -U setuptools); got {setuptools.__version__}"
    )
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build import build  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

ROOT = Path(__file__).resolve().parent
PACKAGE = "llamba_kernels"
TORCH_TARGET = (2, 11)  # the oldest torch whose stable ABI has all we call; newer ones keep it

# -ffp-contract=off: kernels that promise bits spell out every fma themselves.
CXX_FLAGS = (
    "-std=c++20 -O3 -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall "
    "-Icsrc -Icsrc/include"
)
TORCH_FLAGS = f"-DTORCH_STABLE_ONLY -DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
# -Wno-*uninitialized: GCC 12 warns about its own AVX-512 intrinsics headers.
AVX512_FLAGS = (
    "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -Wno-uninitialized -Wno-maybe-uninitialized"
)
ISA_FLAGS = {
    "generic": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": AVX512_FLAGS,
    "avx512bf16": f"{AVX512_FLAGS} -mavx512bf16",
}
# -O1: at -O3 the checks take six times as long to compile.
SANITIZE_FLAGS = {
    "": "",
    "address": "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer",
}
# -fno-strict-aliasing: as nvcc compiles device code.
SIMT_FLAGS = "-fno-strict-aliasing -Wno-unknown-pragmas"
NVCC_FLAGS = (
    "-std=c++20 -O3 -fmad=false -lineinfo -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden,-Wall -Icsrc -Icsrc/include"
)


def stop(sentence):
    raise SystemExit(f"{PACKAGE}: {sentence}")


def find_torch():
    """The folder of the installed torch; not imported, which would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        stop(
            "torch must be installed first (pip install torch==2.13.0) and visible to the build "
            "(pip install --no-build-isolation .); got none"
        )
    version = importlib.metadata.version("torch")
    if tuple(int(number) for number in version.split(".")[:2]) < TORCH_TARGET:
        stop(f"torch must be {TORCH_TARGET[0]}.{TORCH_TARGET[1]} or newer; got {version}")
    return Path(spec.submodule_search_locations[0])


def find_cxx():
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not cxx or not shutil.which(shlex.split(cxx)[0]):
        stop(f"a C++ compiler must be installed (g++ 10 or newer, or clang++), or CXX name one; got {cxx or 'none'}")
    probe = subprocess.run([*shlex.split(cxx), "-std=c++20", "-fsyntax-only", "-xc++", os.devnull], capture_output=True)
    if probe.returncode != 0:
        stop(f"the C++ compiler must know -std=c++20 (g++ 10 or newer, or clang++); got {cxx}, which refuses it")
    return cxx


def find_nvcc():
    """Path of nvcc, or None if the CUDA library is not to be built."""
    wish = os.environ.get("LLAMBA_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        stop(f"LLAMBA_CUDA must be 0, 1 or auto; got {wish}")
    if wish == "0":
        return None
    if "CUDACXX" in os.environ:
        candidates = [os.environ["CUDACXX"]]
    else:
        homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
        candidates = ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)]
    nvcc = next(filter(None, map(shutil.which, candidates)), None)
    if nvcc is None and wish == "1":
        stop(f"nvcc must be on PATH or named by CUDACXX or CUDA_HOME when LLAMBA_CUDA=1; got no {candidates[0]}")
    return nvcc


def find_archs(nvcc):
    archs = re.split(r"[;,\s]+", os.environ.get("LLAMBA_CUDA_ARCHS", "80 86 90a").strip())
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    for arch in archs:
        if not re.fullmatch(r"\d+[af]?", arch) or f"sm_{arch.rstrip('af')}" not in known:  # nvcc lists no letters
            stop(f"LLAMBA_CUDA_ARCHS must name architectures of {nvcc}, such as 80 86 90a; got {arch!r}")
    return archs


def find_sanitizer():
    """ "address" or, for the ordinary build, ""."""
    wish = os.environ.get("LLAMBA_SANITIZE", "")
    if wish not in SANITIZE_FLAGS:
        stop(f"LLAMBA_SANITIZE must be address or empty; got {wish}")
    return wish


def find_simt():
    """Whether the CUDA kernels are to run on the CPU, under the executor of csrc/simt."""
    wish = os.environ.get("LLAMBA_SIMT", "0")
    if wish not in ("0", "1"):
        stop(f"LLAMBA_SIMT must be 0 or 1; got {wish}")
    return wish == "1"


def find_ninja():
    """The ninja of the PyPI package, which need not be on PATH, or the system's."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if not shutil.which("ninja"):
        stop("ninja must be installed first (pip install ninja); got none")
    return ["ninja"]


class NinjaFile:
    """<folder>/build.ninja; paths are relative to the repository root, where ninja runs."""

    def __init__(self, folder):
        self.lines = ["ninja_required_version = 1.5", f"builddir = {folder}"]

    def rule(self, name, command, **settings):
        settings = {"command": command, "description": f"{name} $out", **settings}
        self.lines += [f"rule {name}", *(f"  {key} = {value}" for key, value in settings.items())]

    def build(self, rule, output, inputs, implicit=(), flags=""):
        depends = f" | {' '.join(implicit)}" if implicit else ""
        self.lines += [f"build {output}: {rule} {' '.join(inputs)}{depends}", f"  flags = {flags}"]
        return output


def sources(*patterns):
    return sorted({path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)})


def build_folder(sanitizer, simt):
    """Each kind of build has its own objects, so that changing the kind compiles nothing twice."""
    return "/".join(["build", *filter(None, ["-".join(filter(None, ["simt" if simt else "", sanitizer]))])])


def quote(path):
    return shlex.quote(str(path)).replace("$", "$$")


def compile_cpu_library(compile_cxx):
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    machine = "-DLLAMBA_X86" if x86 else ""
    common = [path for path in sources("csrc/common/*.cpp") if not path.endswith(("_op.cpp", "_cuda.cpp"))]
    kernels = [path for path in sources("csrc/*/*_isa.cpp") if path not in common]
    objects = [compile_cxx(source, machine) for source in common + sources("csrc/*/*_cpu.cpp")]
    for source in kernels:
        for isa in ISA_FLAGS if x86 else ["generic"]:
            if isa == "avx512bf16" and "__AVX512BF16__" not in (ROOT / source).read_text():
                continue  # it would be the avx512 code: csrc/common/cpu_isa.h calls that instead
            objects.append(compile_cxx(source, f"{machine} -DLLAMBA_ISA={isa} {ISA_FLAGS[isa]}", f".{isa}"))
    return objects


def ninja_file(torch, cxx, nvcc, archs, sanitizer, simt):
    """The whole compile graph. Libraries go to <folder>/native; SIMT links the ordinary CPU library."""
    folder, sanitize = build_folder(sanitizer, simt), SANITIZE_FLAGS[sanitizer]
    ninja = NinjaFile(folder)
    compiler_flags = f"{CXX_FLAGS} {'-DLLAMBA_SIMT' if simt else ''} {'' if simt else sanitize}"
    ninja.rule("cxx", f"{cxx} -MD -MF $out.d {compiler_flags} $flags -c $in -o $out", depfile="$out.d", deps="gcc")
    ninja.rule("link", f"{cxx} -shared -o $out $in -Wl,-z,defs {'' if simt else sanitize} $flags")

    def compile_cxx(source, flags="", suffix=""):
        return ninja.build("cxx", f"{folder}/{source}{suffix}.o", [source], flags=flags)

    if simt:
        ninja.rule("copy", "cp $in $out")
        ordinary = f"{build_folder('', False)}/native/libllamba_cpu.so"
        cpu = ninja.build("copy", f"{folder}/native/libllamba_cpu.so", [ordinary])
    else:
        objects = compile_cpu_library(compile_cxx)
        cpu = ninja.build("link", f"{folder}/native/libllamba_cpu.so", objects, flags="-Wl,-soname,libllamba_cpu.so")

    torch_flags = f"{TORCH_FLAGS} -isystem {quote(torch / 'include')}"
    objects = [compile_cxx(source, torch_flags) for source in sources("csrc/ops.cpp", "csrc/*/*_op.cpp")]
    # --no-as-needed: libtorch.so itself must stay in NEEDED, through it the weak CUDA stream function is found.
    torch_libraries = f"-L{quote(torch / 'lib')} -Wl,--no-as-needed -ltorch -ltorch_cpu -ldl"
    libraries = f"-L{folder}/native -lllamba_cpu -Wl,-rpath,'$$ORIGIN' {torch_libraries}"
    ninja.build("link", f"{folder}/native/_C.so", objects, implicit=[cpu], flags=libraries)

    if simt:
        objects = [compile_cxx(source, f"-xc++ {SIMT_FLAGS} {sanitize}") for source in sources("csrc/*/*_launch.cu")]
        objects += [compile_cxx(source, sanitize) for source in sources("csrc/simt/*.cpp", "csrc/common/error.cpp")]
        objects += [compile_cxx(source, "-DLLAMBA_CUDA_ARCHS='\"simt\"'") for source in sources("csrc/*/*_cuda.cpp")]
        flags = f"-Wl,-soname,libllamba_cuda.so {sanitize}"
        ninja.build("link", f"{folder}/native/libllamba_cuda.so", objects, flags=flags)
    elif nvcc:
        codes = " ".join(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs)
        log = "> $out.ptxas 2>&1 || (cat $out.ptxas; false)"  # kept: tests read registers and spills from it
        compile_cuda = f"{quote(nvcc)} -MD -MF $out.d {NVCC_FLAGS} {codes} -c $in -o $out {log}"
        ninja.rule("nvcc", compile_cuda, depfile="$out.d", deps="gcc")
        hide = "-Xlinker --exclude-libs,ALL,-soname,libllamba_cuda.so"  # the static runtime's symbols stay inside
        ninja.rule("nvcc_link", f"{quote(nvcc)} -shared -cudart static -o $out $in {hide}")
        objects = [ninja.build("nvcc", f"{folder}/{source}.o", [source]) for source in sources("csrc/*/*_launch.cu")]
        archs_flag = f"-DLLAMBA_CUDA_ARCHS='\"{' '.join(archs)}\"'"
        objects += [compile_cxx(source, archs_flag) for source in sources("csrc/*/*_cuda.cpp")]
        ninja.build("nvcc_link", f"{folder}/native/libllamba_cuda.so", [*objects, f"{folder}/csrc/common/error.cpp.o"])
    return "\n".join(ninja.lines) + "\n"


def run_ninja(path, text, *targets):
    (path.parent / "native").mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if subprocess.run([*find_ninja(), "-f", path, *jobs, *targets], cwd=ROOT).returncode != 0:
        stop("the native build must succeed; the compiler's messages are above")


def write_ptxas_log(folder, nvcc):
    """<folder>/ptxas.log: what ptxas said of every kernel, under nvcc's version; without nvcc, none."""
    log = folder / "ptxas.log"
    log.unlink(missing_ok=True)
    if nvcc:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        parts = [(folder / f"{source}.o.ptxas").read_text() for source in sources("csrc/*/*_launch.cu")]
        log.write_text("\n".join([f"nvcc {re.search(r'V([0-9.]+)', version)[1]}", *parts]))


class BuildFresh(build):
    """setuptools never empties its staging folder: a deleted module or an old CUDA library would still be shipped."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Runs ninja once for all libraries, then puts them where setuptools expects its extensions."""

    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"  # no Python ABI tag: the libraries do not use Python

    def run(self):
        for variable, wish in (("LLAMBA_SANITIZE", SANITIZER), ("LLAMBA_SIMT", "1" if SIMT else "")):
            if self.inplace and wish:
                stop(
                    f"{variable} must be empty for a build in place (python setup.py build puts its libraries "
                    f"elsewhere); got {wish}"
                )
        super().run()

    def build_extensions(self):
        folder, ordinary = ROOT / build_folder(SANITIZER, SIMT), ROOT / build_folder("", False)
        if SIMT:
            cpu_only = ninja_file(TORCH, find_cxx(), None, [], "", False)
            run_ninja(ordinary / "cpu.ninja", cpu_only, f"{build_folder('', False)}/native/libllamba_cpu.so")
        run_ninja(folder / "build.ninja", ninja_file(TORCH, find_cxx(), NVCC, ARCHS, SANITIZER, SIMT))
        write_ptxas_log(folder, NVCC)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / "native" / target.name, target)

    def copy_extensions_to_source(self):
        for path in (ROOT / PACKAGE).glob("*.so"):  # of an earlier build, perhaps one with CUDA
            path.unlink()
        super().copy_extensions_to_source()


class AnyPython(bdist_wheel):
    """One wheel for every Python: the libraries use torch's stable ABI and no Python ABI."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    if not sys.platform.startswith("linux"):
        stop(f"the operating system must be Linux; got {sys.platform}")
    TORCH = find_torch()
    SANITIZER, SIMT = find_sanitizer(), find_simt()
    NVCC = None if SANITIZER or SIMT else find_nvcc()
    ARCHS = find_archs(NVCC) if NVCC else []
    libraries = ["libllamba_cpu", "_C"] + (["libllamba_cuda"] if NVCC or SIMT else [])
    setuptools.setup(
        ext_modules=[setuptools.Extension(f"{PACKAGE}.{library}", []) for library in libraries],
        options={"build": {"build_lib": f"{build_folder(SANITIZER, SIMT)}/lib"}} if SANITIZER or SIMT else {},
        cmdclass={"build": BuildFresh, "build_ext": BuildNative, "bdist_wheel": AnyPython},
    )
