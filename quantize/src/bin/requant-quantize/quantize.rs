//! The command itself: a float model and samples in, an integer model and a report out.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use requant_import::float;
use requant_import::onnx::ImportOptions;
use requant_model::Graph;
use requant_numerics::WeightPrecision;
use requant_quantize::calibrate::Calibrator;
use requant_quantize::data::Data;
use requant_quantize::exec::Executor;
use requant_quantize::files;
use requant_quantize::judge::Answer;
use requant_quantize::latency::LatencyTable;
use requant_quantize::pipeline::{
    self, Equalise, Evaluation, Method, Options, Outcome, Samples, describe, equalise, evaluate,
    input_specs, quality, run,
};
use requant_quantize::precision::{Activations, Fix, Tie, Weights};
use requant_quantize::reconstruct::Effort;
use requant_quantize::report::{Report, html, layer_table, totals_text};
use requant_quantize::search::sensitivity::Measure;
use requant_quantize::search::{Budgets, Settings, Strategy};
use requant_quantize::work::{self, Key, Work};
use sha2::{Digest as _, Sha256};

use crate::bar::Bar;
use crate::device::{Choice, Device};

/// Quantize a float ONNX model.
#[derive(Args, Clone, Debug)]
pub(crate) struct QuantizeArgs {
    /// The float model, an ONNX file.
    #[arg(value_name = "MODEL.onnx")]
    pub(crate) model: PathBuf,
    /// Samples to calibrate with: an .npz archive with an array named as the input is (for one input also 'x', or the only array but 'y'), or a folder of .npy files. Without it, noise is used, and the model suffers.
    #[arg(long, value_name = "DATA")]
    pub(crate) calibration: Option<PathBuf>,
    /// Folder of the model in a repository: DIR/NAME gets 1/model.safetensors, report.json and report.html.
    #[arg(long, value_name = "DIR/NAME")]
    pub(crate) output: PathBuf,
    /// Weights: int8, int4, int2, ternary, binary, codebook, or auto to let --budget decide.
    #[arg(long, default_value = "auto", value_parser = Weights::from_str)]
    pub(crate) weights: Weights,
    /// Activations: int8, int4, or auto to let --budget decide.
    #[arg(long, default_value = "int8", value_parser = Activations::from_str)]
    pub(crate) activations: Activations,
    /// How ranges of activations are picked: minmax, ema, percentile, entropy or mse.
    #[arg(long, default_value = "minmax", value_parser = Calibrator::from_str)]
    pub(crate) calibrator: Calibrator,
    /// How weights are rounded: nearest, gptq, adaround or descent layer by layer; block to reconstruct blocks after that; auto for descent, and block where activations have 4 bits.
    #[arg(long, default_value = "auto", value_parser = Method::from_str)]
    pub(crate) rounding: Method,
    /// How channels are made alike before anything is quantized, without changing what the model computes: none, weights (cross-layer equalisation) or smooth (SmoothQuant).
    #[arg(long, default_value = "none", value_parser = Equalise::from_str)]
    pub(crate) equalize: Equalise,
    /// Weights of 2 and 4 bits that share a multiplier beside their channel's scale: 32, 64 or 128, along input channels of one place of the window first. Without it a channel has one scale alone.
    #[arg(long, value_name = "WEIGHTS", value_parser = group)]
    pub(crate) group: Option<usize>,
    /// How precisions are searched for a --budget: ilp, rl, nas or greedy [default: ilp]
    #[arg(long, value_parser = Strategy::from_str)]
    pub(crate) search: Option<Strategy>,
    /// How the harm of a layer's precision is measured for the search: kl or mse of the output with only that layer quantized (kl is mse where the output is no classes), fisher (squared gradients) or hessian (its trace) of the weights [default: kl]
    #[arg(long, value_parser = Measure::from_str)]
    pub(crate) sensitivity: Option<Measure>,
    /// What the model may cost as fractions of its all-8-bit cost, such as size=0.6, latency=0.7, bops=0.5, or a floor accuracy=0.98; several with commas.
    #[arg(long, value_name = "COST=FRACTION", value_parser = Budgets::from_str)]
    pub(crate) budget: Option<Budgets>,
    /// Precision of one layer, such as conv1=w8a8; may be repeated.
    #[arg(long, value_name = "LAYER=PRECISION", value_parser = Fix::from_str)]
    pub(crate) fix: Vec<Fix>,
    /// Layers that the search gives one precision, such as conv1,conv2; may be repeated.
    #[arg(long, value_name = "LAYER,LAYER", value_parser = Tie::from_str)]
    pub(crate) tie: Vec<Tie>,
    /// Latencies that `requant-quantize profile` measured on this device; needed by --budget latency=….
    #[arg(long, value_name = "LATENCY.json")]
    pub(crate) profile: Option<PathBuf>,
    /// Labelled samples to measure accuracy on; they decide nothing.
    #[arg(long, value_name = "DATA.npz")]
    pub(crate) evaluate: Option<PathBuf>,
    /// Where the HTML report goes instead of into the output folder.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Also write the model as ONNX with QuantizeLinear and DequantizeLinear nodes.
    #[arg(long, value_name = "FILE.onnx")]
    pub(crate) export_qdq: Option<PathBuf>,
    /// Go on where an interrupted run of the same command stopped.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Takes warnings for errors: what the user should look at first ends the command, and nothing is written.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Goes on where an input or an activation is the same number in all samples, or a layer has no weights but 0, which otherwise ends the command.
    #[arg(long)]
    pub(crate) allow_constant: bool,
    /// What --profile was measured on; auto takes a GPU where there is one [default: auto]
    #[arg(long, value_enum)]
    pub(crate) backend: Option<Choice>,
    /// Compute threads [default: the cores granted to the process].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// Where this command keeps its finished steps.
static STEPS: OnceLock<PathBuf> = OnceLock::new();

/// What to tell whoever's command ends early and has finished steps on disk.
pub(crate) fn kept() -> Option<String> {
    let folder = STEPS.get().filter(|folder| folder.is_dir())?.display();
    Some(format!(
        "finished steps are kept in {folder}, --resume goes on from them"
    ))
}

/// What a model is made from.
struct Origin {
    /// SHA-256 of the float model's file.
    source: String,
    /// SHA-256 of the samples.
    calibration: String,
    /// How many samples.
    samples: usize,
}

impl QuantizeArgs {
    /// Quantizes; gives what is printed.
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let options = self.options()?;
        let name = self.name()?;
        let bytes = files::read(&self.model)?;
        self.check_places()?;
        self.use_threads()?;
        let mut graph = float::read_bytes(&bytes, &name, &ImportOptions::default())
            .with_context(|| self.model.display().to_string())?;
        self.check_export(&graph)?;
        let source = work::hex(&Sha256::digest(&bytes));
        // The file is as large as the graph.
        drop(bytes);
        let bar = Bar::new();
        let specs = input_specs(&graph);
        let data = match &self.calibration {
            Some(path) => Data::read(path, &specs)?,
            None => Data::noise(&specs, NOISE_SAMPLES, self.seed),
        };
        let mut warnings = self.without_effect();
        warnings.extend(data.few());
        for constant in data.constants() {
            ensure!(
                self.allow_constant,
                "{constant} (--allow-constant goes on all the same)"
            );
            warnings.push(constant);
        }
        if self.calibration.is_none() {
            warnings.push(
                "calibrated on noise, because no --calibration was given: expect a poor model"
                    .to_owned(),
            );
        }
        let samples = Samples::new(&graph, &data);
        let pairs = equalise(&mut graph, &samples, self.equalize, &bar)?;
        if self.equalize != Equalise::None && pairs == 0 {
            warnings.push(format!(
                "--equalize {} changes nothing: no two layers have nothing but a ReLU between them",
                self.equalize
            ));
        }
        self.tell(&warnings, &bar)?;
        let labelled = match &self.evaluate {
            Some(path) => {
                let classes = Answer::of(&graph).classes();
                Some(Data::read_labelled(path, &specs, classes)?)
            }
            None => None,
        };
        let profiled = match &self.profile {
            Some(path) => {
                let backend = self.device().open()?;
                Some((LatencyTable::load(path, &backend.info())?, backend))
            }
            None => None,
        };
        let target = profiled.as_ref().map(|(table, backend)| pipeline::Device {
            table,
            backend: &**backend,
        });
        let threads = self.device().threads();
        let origin = Origin {
            source,
            calibration: samples.digest()?,
            samples: samples.len(),
        };
        let key = self.key(&origin);
        let folder = self.work_folder(&name);
        let work = Work::new(&folder, self.resume);
        // There is one command in a process.
        let _ = STEPS.set(folder);
        let tell_kept = || {
            if let Some(kept) = kept() {
                bar.note(&format!("note: {kept}"));
            }
        };
        let outcome = run(&graph, &samples, &options, target, (&work, &key), &bar)
            .inspect_err(|_| tell_kept())?;
        let mut found = outcome.warnings.clone();
        let layers = outcome.quantized.layers.iter().flatten();
        if self.group.is_some() && !layers.into_iter().any(|layer| layer.groups.is_some()) {
            found.push("--group changes nothing: no layer got weights of 2 or 4 bits".to_owned());
        }
        if let Some(fault) = work.fault() {
            found.push(format!(
                "finished steps could not be kept for --resume: {fault}"
            ));
        }
        self.tell(&found, &bar)?;
        warnings.extend(found);
        let executor = Executor::new(&graph)?;
        let evaluation = match &labelled {
            Some(data) => {
                let samples = Samples::new(&graph, data);
                let model = &outcome.model;
                Some(evaluate(&executor, model, &samples, threads, &bar)?)
            }
            None => None,
        };
        let qualities = quality(&executor, &outcome.quantized, &samples, &bar)?;
        let mut model = outcome.model.clone();
        self.note_origin(&mut model, &origin, &outcome);
        let network = match &target {
            Some(target) => Some(target.table.network(&model, target.backend)?),
            None => None,
        };
        let mut report = describe(
            &graph,
            &outcome,
            &options,
            &qualities,
            evaluation.as_ref(),
            network.as_ref(),
        );
        if let Some(target) = &target {
            // The model as it is now, 16-bit streams included, which the search did not know of.
            report.totals.seconds = Some(target.table.predict(&model, target.backend)?);
        }
        if let Some(search) = &mut report.search {
            let measure = options.sensitivity.to_string();
            search.details.insert("sensitivity".to_owned(), measure);
        }
        report.provenance.clone_from(&model.provenance);
        report.warnings.extend(warnings);
        bar.finish();
        let written = self.write(&model, &outcome, &report);
        written.inspect_err(|_| tell_kept())?;
        if let Err(error) = work.finish() {
            // Another run of the same command may be using it; the results are written.
            bar.note(&format!("warning: finished steps stay on disk: {error}"));
        }
        Ok(self.summary(&outcome, &report, evaluation.as_ref()))
    }

    fn device(&self) -> Device {
        Device {
            backend: self.backend.unwrap_or(Choice::Auto),
            threads: self.threads,
        }
    }

    /// Prints warnings; with --strict the first of them is the error.
    fn tell(&self, warnings: &[String], bar: &Bar) -> anyhow::Result<()> {
        if let (true, Some(warning)) = (self.strict, warnings.first()) {
            bail!("{warning} (--strict)");
        }
        for warning in warnings {
            bar.note(&format!("warning: {warning}"));
        }
        Ok(())
    }

    /// A sentence for each flag that was given and changes nothing.
    fn without_effect(&self) -> Vec<String> {
        let searched = self.budget.is_some();
        let idle = [
            (
                self.search.is_some() && !searched,
                "--search changes nothing without a --budget",
            ),
            (
                self.sensitivity.is_some() && !searched,
                "--sensitivity changes nothing without a --budget",
            ),
            (
                self.backend.is_some() && self.profile.is_none(),
                "--backend changes nothing without a --profile: the integer model is the same on every backend",
            ),
        ];
        let named = idle.into_iter().filter(|(idle, _)| *idle);
        named.map(|(_, sentence)| sentence.to_owned()).collect()
    }

    fn options(&self) -> anyhow::Result<Options> {
        let needs_profile = self.budget.is_some_and(|budget| budget.latency.is_some());
        if needs_profile && self.profile.is_none() {
            bail!(
                "--budget latency=… needs --profile: measure this device with 'requant-quantize profile'"
            );
        }
        let narrow = !matches!(self.activations, Activations::Eight);
        if self.budget.is_none() && matches!(self.activations, Activations::Auto) {
            bail!("--activations auto needs a --budget that decides");
        }
        if self.budget.is_none() && !self.tie.is_empty() {
            bail!("--tie needs a --budget: without one nothing is searched");
        }
        if self.group.is_some() && needs_profile {
            bail!("--group goes without --budget latency=…: no profile has layers with groups");
        }
        if narrow && matches!(self.weights, Weights::All(w) if w != WeightPrecision::W4) {
            bail!(
                "--activations {} goes with --weights int4 or auto",
                if matches!(self.activations, Activations::Four) {
                    "int4"
                } else {
                    "auto"
                }
            );
        }
        let sensitivity = self.sensitivity.unwrap_or_default();
        if sensitivity.weighs_weights_only() && narrow {
            bail!(
                "--sensitivity {sensitivity} sees weights alone: --activations {} needs kl or mse",
                self.activations
            );
        }
        for (index, fix) in self.fix.iter().enumerate() {
            if let Some(first) = self.fix[..index].iter().find(|f| f.layer == fix.layer) {
                bail!("--fix names layer '{}' twice: {first} and {fix}", fix.layer);
            }
        }
        Ok(Options {
            weights: self.weights,
            activations: self.activations,
            calibrator: self.calibrator,
            method: self.rounding,
            group: self.group,
            fixes: self.fix.clone(),
            ties: self.tie.iter().map(|tie| tie.layers.clone()).collect(),
            budgets: self.budget,
            sensitivity,
            search: Settings {
                strategy: self.search.unwrap_or_default(),
                seed: self.seed,
                ..Settings::default()
            },
            effort: Effort {
                seed: self.seed,
                ..Effort::default()
            },
            allow_constant: self.allow_constant,
            threads: self.device().threads(),
            ..Options::default()
        })
    }

    /// The model's name: that of the output folder.
    fn name(&self) -> anyhow::Result<String> {
        let name = self.output.file_name().and_then(|name| name.to_str());
        match name {
            Some(name) => Ok(name.to_owned()),
            None => bail!(
                "--output {}: no folder name for the model",
                self.output.display()
            ),
        }
    }

    /// Hidden beside the output folder, where a server that watches the repository takes no notice of it.
    fn work_folder(&self, name: &str) -> PathBuf {
        self.output.with_file_name(format!(".{name}.work"))
    }

    /// Finds out before hours of work whether the results have a place to go, and overwrite nothing that is
    /// read.
    fn check_places(&self) -> anyhow::Result<()> {
        let version = self.output.join("1");
        for folder in version.ancestors() {
            if folder.is_dir() || folder.as_os_str().is_empty() {
                files::check_writable(&folder.join("model.safetensors"))
                    .with_context(|| format!("--output {}", self.output.display()))?;
                break;
            }
            if folder.exists() {
                bail!(
                    "--output {}: {} is not a folder",
                    self.output.display(),
                    folder.display()
                );
            }
        }
        // What is there already may be no file.
        let page = self
            .report
            .is_none()
            .then(|| self.output.join("report.html"));
        let data = self.output.join("report.json");
        for file in [version.join("model.safetensors"), data]
            .into_iter()
            .chain(page)
        {
            if file.parent().is_some_and(Path::is_dir) {
                files::check_writable(&file)
                    .with_context(|| format!("--output {}", self.output.display()))?;
            }
        }
        let read = [&self.calibration, &self.evaluate, &self.profile];
        let mut taken: Vec<PathBuf> = read.into_iter().flatten().map(|path| real(path)).collect();
        taken.push(real(&self.model));
        taken.push(real(&version.join("model.safetensors")));
        taken.push(real(&self.output.join("report.json")));
        for (flag, file) in [
            ("--report", &self.report),
            ("--export-qdq", &self.export_qdq),
        ] {
            let Some(file) = file else { continue };
            files::check_writable(file).with_context(|| flag.to_owned())?;
            let place = real(file);
            if taken.contains(&place) && (place.is_file() || !place.exists()) {
                bail!(
                    "{flag} {}: would overwrite another file of this command",
                    file.display()
                );
            }
            taken.push(place);
        }
        Ok(())
    }

    /// Finds out before hours of work that ONNX has no form for groups of a convolution.
    fn check_export(&self, graph: &float::Graph) -> anyhow::Result<()> {
        let is_conv = |index: &usize| matches!(graph.nodes[*index].op, float::Op::Conv(_));
        let conv = graph.layers().find(is_conv);
        if let (Some(_), Some(_), Some(conv)) = (self.group, &self.export_qdq, conv) {
            bail!(
                "--export-qdq goes without --group: ONNX has no groups for convolution '{}'",
                graph.nodes[conv].name
            );
        }
        Ok(())
    }

    /// Gives the float model as many threads as the integer one.
    fn use_threads(&self) -> anyhow::Result<()> {
        match self.threads {
            Some(threads) => Ok(rayon::ThreadPoolBuilder::new()
                .num_threads(usize::from(threads))
                .build_global()?),
            None => Ok(()),
        }
    }

    /// A digest of everything that finished steps depend on.
    fn key(&self, origin: &Origin) -> Key {
        let recipe = format!(
            "{} {:?} {:?} {:?} {:?} {}",
            env!("CARGO_PKG_VERSION"),
            self.rounding,
            self.calibrator,
            self.equalize,
            self.group,
            self.seed
        );
        let parts = [&origin.source, &recipe, &origin.calibration];
        Key::of(parts.map(|part| part.as_bytes()))
    }

    fn note_origin(&self, model: &mut Graph, origin: &Origin, outcome: &Outcome<'_>) {
        let file = self.model.file_name().and_then(|name| name.to_str());
        let mut note = |key: &str, value: String| {
            model.provenance.insert(key.to_owned(), value);
        };
        note(
            "tool",
            format!("requant-quantize {}", env!("CARGO_PKG_VERSION")),
        );
        note("source", file.unwrap_or("model.onnx").to_owned());
        note("source_sha256", origin.source.clone());
        note("calibration_sha256", origin.calibration.clone());
        note("calibration_samples", origin.samples.to_string());
        note("weights", self.weights.to_string());
        note("activations", self.activations.to_string());
        if !self.fix.is_empty() {
            let fixed: Vec<String> = self.fix.iter().map(Fix::to_string).collect();
            note("fixed", fixed.join(" "));
        }
        if !self.tie.is_empty() {
            let tied: Vec<String> = self.tie.iter().map(Tie::to_string).collect();
            note("tied", tied.join(" "));
        }
        note("calibrator", self.calibrator.to_string());
        note("rounding", self.rounding.to_string());
        if let Some(group) = self.group {
            note("group", group.to_string());
        }
        note("equalize", self.equalize.to_string());
        note("seed", self.seed.to_string());
        if let (Some(budget), Some(best)) = (&self.budget, outcome.solutions.first()) {
            note("search", self.search.unwrap_or_default().to_string());
            note("budget", budget.to_string());
            note(
                "sensitivity",
                self.sensitivity.unwrap_or_default().to_string(),
            );
            note("search_sensitivity", format!("{:e}", best.sensitivity));
        }
    }

    /// Everything is made before anything is written, and the files are there all together or not at all.
    fn write(&self, model: &Graph, outcome: &Outcome<'_>, report: &Report) -> anyhow::Result<()> {
        let artifact = requant_model::artifact::write(model)?;
        let (json, html) = (report.json()?, html(report));
        let exported = match &self.export_qdq {
            Some(path) => Some((path, float::to_onnx(&outcome.quantized)?)),
            None => None,
        };
        let version = self.output.join("1");
        let place = version.join("model.safetensors");
        let data = self.output.join("report.json");
        let page = self.output.join("report.html");
        let page = self.report.as_ref().unwrap_or(&page);
        let mut all: Vec<(&Path, &[u8])> = vec![(&data, json.as_bytes()), (page, html.as_bytes())];
        if let Some((path, bytes)) = &exported {
            all.push((path, bytes));
        }
        all.push((&place, &artifact));
        let missing: Vec<&Path> = version.ancestors().take_while(|f| !f.exists()).collect();
        let written = fs::create_dir_all(&version)
            .with_context(|| version.display().to_string())
            .and_then(|()| Ok(files::write_all(&all)?));
        if written.is_err() {
            for folder in missing {
                // The fault that is reported is the first one; what is not empty stays.
                let _ = fs::remove_dir(folder);
            }
        }
        written
    }

    fn summary(
        &self,
        outcome: &Outcome<'_>,
        report: &Report,
        evaluation: Option<&Evaluation>,
    ) -> String {
        let mut text = layer_table(report);
        text.push('\n');
        text.push_str(&totals_text(report));
        let on = &outcome.calibration.integer;
        text.push_str(&format!(
            "\nOn {} calibration samples: {:.2} % of the answers as the float model's, divergence {:.3e}\n",
            on.samples,
            100.0 * on.agreement(),
            on.mean_divergence()
        ));
        if let Some(evaluation) = evaluation {
            let percent =
                |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.2} %", 100.0 * v));
            text.push_str(&format!(
                "On {} evaluation samples: float {}, integer {}, agreement {:.2} %\n",
                evaluation.integer.samples,
                percent(evaluation.float.accuracy()),
                percent(evaluation.integer.accuracy()),
                100.0 * evaluation.integer.agreement()
            ));
        }
        let written = self.output.join("1").join("model.safetensors");
        text.push_str(&format!("{}\n", written.display()));
        text
    }
}

/// A path without links, of a file that is there or not.
fn real(path: &Path) -> PathBuf {
    let whole = || path.canonicalize().ok();
    let folder = || {
        let parent = match path.parent()? {
            parent if parent.as_os_str().is_empty() => Path::new("."),
            parent => parent,
        };
        Some(parent.canonicalize().ok()?.join(path.file_name()?))
    };
    whole().or_else(folder).unwrap_or_else(|| path.to_owned())
}

/// A size of groups.
fn group(word: &str) -> Result<usize, UnknownGroup> {
    let sizes = [32, 64, 128];
    let size = word.parse().ok().filter(|size| sizes.contains(size));
    size.ok_or_else(|| UnknownGroup(word.to_owned()))
}

/// A word that names no size of groups.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is none of 32, 64 and 128")]
struct UnknownGroup(String);

/// Samples of noise where there is no data.
const NOISE_SAMPLES: usize = 64;
