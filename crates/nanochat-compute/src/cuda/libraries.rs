//! NVIDIA's libraries: found when the program runs, never needed to build it.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A library that the GPU backend loads.
#[derive(Clone, Debug)]
pub struct Library {
    /// What it is: `cuBLASLt`.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Where it was found; none when it was not.
    pub path: Option<PathBuf>,
    /// What to do when it is missing.
    pub hint: &'static str,
}

/// Name, purpose, file names (the newest first) and where to get it.
struct Wanted {
    name: &'static str,
    purpose: &'static str,
    files: &'static [&'static str],
    /// Files of the same folder that it opens by name, to be opened before it.
    helpers: &'static [&'static str],
    hint: &'static str,
}

const DRIVER: Wanted = Wanted {
    name: "CUDA driver",
    purpose: "drives the GPU",
    files: &["libcuda.so.1"],
    helpers: &[],
    hint: "install NVIDIA's driver for this GPU (libcuda.so.1)",
};

const NVRTC: Wanted = Wanted {
    name: "NVRTC",
    purpose: "compiles the kernels at first use",
    files: &["libnvrtc.so.13", "libnvrtc.so.12"],
    helpers: &["libnvrtc-builtins.so.*"],
    hint: "install the CUDA toolkit (12.8 or later), or: pip install nvidia-cuda-nvrtc",
};

const CUBLASLT: Wanted = Wanted {
    name: "cuBLASLt",
    purpose: "matrix products",
    files: &["libcublasLt.so.13", "libcublasLt.so.12"],
    helpers: &[],
    hint: "install the CUDA toolkit (12.8 or later), or: pip install nvidia-cublas",
};

/// Every library that the GPU backend loads, and where it is on this machine.
pub fn libraries() -> Vec<Library> {
    let find = |wanted: &Wanted| Library {
        name: wanted.name,
        purpose: wanted.purpose,
        path: open(wanted),
        hint: wanted.hint,
    };
    [&DRIVER, &NVRTC, &CUBLASLT].map(find).to_vec()
}

/// True when the driver is there; nothing else is looked for, or opened.
pub(super) fn has_driver() -> bool {
    open(&DRIVER).is_some()
}

/// Opens them all, so that they are found by name from now on.
///
/// Errors: the first one that is missing, with what to do.
pub(super) fn load() -> Result<()> {
    for library in libraries() {
        if library.path.is_none() {
            let (name, hint) = (library.name, library.hint);
            let detail =
                format!("{name} was not found: {hint}; or leave --device cuda out to use the CPU");
            return Err(Error::Device { what: "GPU", detail });
        }
    }
    Ok(())
}

/// Opens a library for the whole process; where it was found.
fn open(wanted: &Wanted) -> Option<PathBuf> {
    for file in wanted.files {
        // By name: the system's own places and LD_LIBRARY_PATH.
        if open_path(Path::new(file)) {
            return Some(PathBuf::from(file));
        }
        for folder in folders() {
            let path = folder.join(file);
            if !path.exists() {
                continue;
            }
            for pattern in wanted.helpers {
                helpers(&folder, pattern).iter().for_each(|path| {
                    open_path(path);
                });
            }
            if open_path(&path) {
                return Some(path);
            }
        }
    }
    None
}

/// Files of a folder that begin with what stands before the star.
fn helpers(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let start = pattern.trim_end_matches('*');
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(start));
    named.map(|e| e.path()).collect()
}

/// Opens a library and leaves it open, its symbols for all.
#[cfg(unix)]
fn open_path(path: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the initialisers of NVIDIA's libraries expect to be run by any process at any time.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

/// GPUs are for unix systems.
#[cfg(not(unix))]
fn open_path(_path: &Path) -> bool {
    false
}

/// Where the toolkit and PyTorch's wheels put libraries, the user's own choice first.
fn folders() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for root in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os) {
        all.push(PathBuf::from(&root).join("lib64"));
        all.push(PathBuf::from(&root).join("lib"));
    }
    for root in ["/usr/local/cuda", "/opt/cuda", "/usr/local/nvidia"] {
        all.push(Path::new(root).join("lib64"));
    }
    for root in pythons() {
        for packages in ["site-packages", "dist-packages"] {
            all.extend(below(&root.join("lib"), "python3", packages));
        }
    }
    all
}

/// Roots of Python installations: that of the active environment, and of every `python3` on the path.
fn pythons() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> =
        std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter().collect();
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        if folder.join("python3").exists()
            && let Some(root) = folder.parent()
        {
            roots.push(root.to_path_buf());
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        roots.push(Path::new(&home).join(".local"));
    }
    roots.push(PathBuf::from("/usr/local"));
    roots
}

/// `lib/python3.12/site-packages/nvidia/cublas/lib` and its like.
fn below(lib: &Path, python: &str, packages: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(lib).into_iter().flatten().flatten();
    for version in entries.filter(|e| e.file_name().to_string_lossy().starts_with(python)) {
        let nvidia = version.path().join(packages).join("nvidia");
        let parts = std::fs::read_dir(nvidia).into_iter().flatten().flatten();
        found.extend(parts.map(|part| part.path().join("lib")));
    }
    found.sort();
    found
}
