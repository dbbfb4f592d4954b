//! The command line.

use requant_kernels_cuda::Kernel;

pub(crate) const USAGE: &str = "usage: gpucheck [--quick] [--only TEXT] [--device N] [--artefact FILE]... [--cublaslt FILE] [--json FILE]

--quick          fewer rounds and finishes, smaller products
--only TEXT      what has TEXT in its name: the sections rows, operators, networks and gemm, or kernels
--device N       the device [default: 0]
--artefact FILE  a model to check and time beside the built-in one
--cublaslt FILE  the library to compare with [default: what the loader finds]
--json FILE      the report, for programs";

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) only: String,
    pub(crate) device: usize,
    pub(crate) artefacts: Vec<String>,
    pub(crate) cublaslt: Option<String>,
    pub(crate) json: Option<String>,
}

impl Options {
    /// Nothing where a word is unknown, or its value is missing or wrong.
    pub(crate) fn read(words: &[String]) -> Option<Self> {
        let mut options = Options::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--only" => options.only.clone_from(words.next()?),
                "--device" => options.device = words.next()?.parse().ok()?,
                "--artefact" => options.artefacts.push(words.next()?.clone()),
                "--cublaslt" => options.cublaslt = Some(words.next()?.clone()),
                "--json" => options.json = Some(words.next()?.clone()),
                _ => return None,
            }
        }
        let sections = ["rows", "operators", "networks", "gemm"];
        let known = options.wants_kernels() || sections.iter().any(|name| options.wants(name));
        known.then_some(options)
    }

    /// Whether something of this name is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// Whether any kernel of products is.
    pub(crate) fn wants_kernels(&self) -> bool {
        product_kernels().any(|kernel| self.wants(kernel.name()))
    }
}

/// The kernels of products.
pub(crate) fn product_kernels() -> impl Iterator<Item = Kernel> {
    let all = Kernel::ALL.iter().copied();
    all.filter(|kernel| kernel.is_product())
}
