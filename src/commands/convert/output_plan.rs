//! What each tensor of the base becomes: copied, computed, replaced, or dropped.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use safetensors::Dtype;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::checkpoint::module::Module;
use crate::commands::convert::accounts;
use crate::commands::convert::sharding::{Computed, Content, OutTensor, Unit};
use crate::lora::names::{Place, is_parameter, kind_of, place_of};
use crate::quant::encode::fp8::FP8_BLOCK;
use crate::quant::expert::layout::ExpertForm;
use crate::quant::weight::{SchemeKind, TensorInfo};
use crate::{Error, Result};

/// What the weights should become.
#[derive(Clone, Debug)]
pub(crate) struct OutputSpec {
    /// The type of computed weights.
    pub dtype: Dtype,
    /// Whether linear layers become block FP8.
    pub fp8: bool,
    /// Modules that an adapter changes, by the base's names. They may include a head that is tied to the embedding.
    pub changed: BTreeSet<String>,
    /// Parameters that an adapter holds whole, by name.
    pub replaced: BTreeMap<String, Tensor>,
    /// The head, if it is tied to the embedding and has to be stored separately.
    pub untie: Option<String>,
}

/// All tensors of the output.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// In the order of the base's files.
    pub units: Vec<Unit>,
    /// Number of modules whose weights are computed.
    pub computed: usize,
    /// Number of tensors that are copied.
    pub copied: usize,
    /// Dropped tensors, not counting the companions of weights.
    pub dropped: Vec<String>,
    /// Linear modules that are not FP8 when others are.
    pub not_converted: Vec<String>,
    /// Whether any weight is block FP8.
    pub fp8: bool,
    /// Stacks of experts that are already planned, by their first tensor.
    stacks: HashSet<String>,
}

impl Target {
    /// Plans every tensor of `base`.
    ///
    /// # Errors
    /// GGUF; two weights of one name; a tensor of which nothing became.
    pub fn of(base: &Checkpoint, spec: &OutputSpec) -> Result<Target> {
        // Its metadata are no whole config, and some of its dense weights lie permuted.
        if base.scheme().kind() == SchemeKind::Gguf {
            let hint = "convert it with transformers: from_pretrained(.., gguf_file=..), then save_pretrained (version 5 wants \
                 quantization_config=GgufConfig(dequantize=True) with it)";
            return Err(Error::input("a GGUF file cannot be converted to a checkpoint")
                .path(base.root())
                .hint(hint));
        }
        let mut target = Target::default();
        let is_block_fp8 =
            base.scheme().kind() == SchemeKind::BlockFp8 { rows: FP8_BLOCK[0], columns: FP8_BLOCK[1] };
        let singly = stacks_to_split(base, spec, is_block_fp8);
        let changed_stacks = changed_stacks(base, spec);
        for module in base.modules() {
            let changed = spec.changed.contains(module.name());
            for part in parts(module) {
                match part.stack() {
                    Some((stack, shape)) if !singly.contains(part.tensors()[0].name()) => {
                        let changed = changed_stacks.contains(stack.name());
                        target.stack(stack, shape, changed, spec, is_block_fp8);
                    }
                    _ => target.module(part, changed, spec, is_block_fp8)?,
                }
            }
        }
        if let Some(head) = &spec.untie
            && let Some(embedding) = base.module(head)
        {
            target.head(head, embedding, spec);
        }
        let quantized: HashSet<&str> =
            base.modules().filter(|m| m.is_quantized()).map(Module::name).collect();
        for tensor in base.others() {
            if is_left_behind(tensor.name(), &quantized) {
                target.dropped.push(tensor.name().to_owned());
            } else {
                target.copy(tensor, spec);
            }
        }
        target.units.sort_by_key(|unit| unit.place);
        target.not_converted.sort();
        target.unique(base)?;
        accounts::check(base, &target.units, &target.dropped)?;
        Ok(target)
    }

    fn module(
        &mut self,
        module: &Module,
        changed: bool,
        spec: &OutputSpec,
        is_block_fp8: bool,
    ) -> Result<()> {
        let (name, lead) = (module.name(), &module.tensors()[0]);
        // A matrix that is a parameter has its own name in the file.
        let weight = if lead.name() == name { name.to_owned() } else { format!("{name}.weight") };
        if spec.replaced.contains_key(&weight) && !module.is_quantized() {
            self.copy(lead, spec);
            return Ok(());
        }
        let sliced = module.stack().is_some();
        let computed = || Computed { name: module.shared_name().clone(), module: module.clone() };
        if module.is_quantized() && !sliced && !belongs(name, lead) {
            let what = "this quantized expert is stored under another name, and has no dense form to write";
            return Err(Error::input(what)
                .tensor(lead.name())
                .hint("`trephine extract` and `trephine verify` read it as it is"));
        }
        let fp8 = spec.fp8 && is_convertible(module);
        let place = (lead.file, lead.bytes.start);
        let whole = TensorInfo::new(&weight, spec.dtype, module.shape());
        if fp8 && !changed && module.is_quantized() && is_block_fp8 {
            self.fp8 = true;
            self.copied += module.tensors().len();
            let tensors = module.tensors().iter().map(OutTensor::copy).collect();
            self.units.push(Unit { place, tensors });
        } else if fp8 {
            self.fp8 = true;
            self.computed += 1;
            let shape = module.shape();
            let grid = vec![shape[0].div_ceil(FP8_BLOCK[0]), shape[1].div_ceil(FP8_BLOCK[1])];
            let codes = TensorInfo { dtype: Dtype::F8_E4M3, ..whole };
            let scales = TensorInfo::new(format!("{weight}_scale_inv"), Dtype::F32, grid);
            let tensors = vec![
                OutTensor { stored: codes, content: Content::Codes(computed()) },
                OutTensor { stored: scales, content: Content::Scales(computed()) },
            ];
            self.units.push(Unit { place, tensors });
        } else {
            if spec.fp8 && !matches!(place_of(name), Place::Embedding | Place::Positions) {
                self.not_converted.push(name.to_owned());
            }
            if changed || sliced || module.is_quantized() {
                self.computed += 1;
                // An unchanged slice keeps its dtype.
                let dtype = if changed || module.is_quantized() { spec.dtype } else { lead.stored.dtype };
                let stored = TensorInfo { dtype, ..whole };
                let tensors = vec![OutTensor { stored, content: Content::Weight(computed()) }];
                self.units.push(Unit { place, tensors });
            } else {
                self.copy(lead, spec);
            }
        }
        Ok(())
    }

    /// A stack of experts, once for all of its modules.
    fn stack(
        &mut self,
        stack: Module,
        shape: Vec<usize>,
        changed: bool,
        spec: &OutputSpec,
        is_block_fp8: bool,
    ) {
        let lead = stack.tensors()[0].clone();
        if !self.stacks.insert(lead.name().to_owned()) {
            return;
        }
        let place = (lead.file, lead.bytes.start);
        if spec.fp8 && stack.is_quantized() && is_block_fp8 && !changed {
            self.fp8 = true;
            self.copied += stack.tensors().len();
            let tensors = stack.tensors().iter().map(OutTensor::copy).collect();
            self.units.push(Unit { place, tensors });
            return;
        }
        if spec.fp8 {
            self.not_converted.push(stack.name().to_owned());
        }
        if !stack.is_quantized() && !changed {
            return self.copy(&lead, spec);
        }
        self.computed += 1;
        let stored = TensorInfo::new(stack.name(), spec.dtype, shape);
        self.units.push(Unit { place, tensors: vec![OutTensor { stored, content: Content::Stack(stack) }] });
    }

    /// Plans the head of a model that had no separate one.
    fn head(&mut self, head: &str, embedding: &Module, spec: &OutputSpec) {
        let lead = &embedding.tensors()[0];
        let weight = format!("{head}.weight");
        let (dtype, content) = if let Some(saved) = spec.replaced.get(&weight) {
            (saved.stored.dtype, Content::Adapter(saved.clone()))
        } else if spec.changed.contains(head) || embedding.is_quantized() {
            let module = embedding.clone();
            (spec.dtype, Content::Weight(Computed { name: head.into(), module }))
        } else {
            (lead.stored.dtype, Content::Base(lead.clone()))
        };
        let stored = TensorInfo::new(weight, dtype, embedding.shape());
        if spec.fp8 {
            self.not_converted.push(head.to_owned());
        }
        self.computed += 1;
        let tensors = vec![OutTensor { stored, content }];
        self.units.push(Unit { place: (lead.file, lead.bytes.start), tensors });
    }

    fn copy(&mut self, tensor: &Tensor, spec: &OutputSpec) {
        let place = (tensor.file, tensor.bytes.start);
        let out = match spec.replaced.get(tensor.name()) {
            None => OutTensor::copy(tensor),
            Some(saved) => {
                let stored = TensorInfo { name: tensor.stored.name.clone(), ..saved.stored.clone() };
                OutTensor { stored, content: Content::Adapter(saved.clone()) }
            }
        };
        self.copied += 1;
        self.units.push(Unit { place, tensors: vec![out] });
    }

    fn unique(&self, base: &Checkpoint) -> Result<()> {
        let mut names = HashSet::new();
        for tensor in self.units.iter().flat_map(|unit| &unit.tensors) {
            if !names.insert(&tensor.stored.name) {
                let what = "the checkpoint holds this weight twice, quantized and dense";
                let hint = "the files mix two exports of the model: keep one";
                return Err(Error::input(what).tensor(&tensor.stored.name).path(base.root()).hint(hint));
            }
        }
        Ok(())
    }
}

/// The stacks, by their first tensors, that are written as single experts: in models that exist in that form, the
/// stacks with an expert that becomes FP8.
fn stacks_to_split(base: &Checkpoint, spec: &OutputSpec, is_block_fp8: bool) -> HashSet<String> {
    if base.scheme().experts().form() != ExpertForm::Single || !spec.fp8 {
        return HashSet::new();
    }
    let split =
        |module: &&Module| spec.changed.contains(module.name()) || !(is_block_fp8 && module.is_quantized());
    let is_expert = |module: &&Module| module.stack().is_none_or(|(_, shape)| shape.len() == 3);
    let split = base.modules().filter(split).filter(is_expert);
    split.map(|module| module.tensors()[0].name().to_owned()).collect()
}

/// The stacks that stay stacks of which an adapter changes an expert, by the names of their dense tensors.
fn changed_stacks(base: &Checkpoint, spec: &OutputSpec) -> HashSet<String> {
    let changed = base.modules().filter(|module| spec.changed.contains(module.name()));
    changed.flat_map(parts).filter_map(|part| Some(part.stack()?.0.name().to_owned())).collect()
}

/// What the files hold a module as: itself, or each of its parts singly.
fn parts(module: &Module) -> impl Iterator<Item = &Module> {
    let itself = module.singles().is_empty().then_some(module);
    itself.into_iter().chain(module.singles().iter().map(|single| &single.module))
}

/// Whether a module is the one that its first tensor is stored for: `X` of `X.weight`, `X.qweight` or
/// `X.weight_packed`.
fn belongs(name: &str, lead: &Tensor) -> bool {
    lead.name()
        .strip_prefix(name)
        .is_some_and(|rest| [".weight", ".qweight", ".weight_packed"].contains(&rest))
}

/// Whether a linear layer of the language model becomes FP8. Scales follow the codes in the file, so the codes have to
/// fill whole words; the layers of all served models do.
fn is_convertible(module: &Module) -> bool {
    let (name, [rows, columns]) = (module.name(), module.shape());
    let kind = kind_of(name);
    let linear = kind.ends_with("_proj") || name.contains("experts.") && ["w1", "w2", "w3"].contains(&kind);
    let is_vision = ["visual", "vision"].iter().any(|word| name.contains(word));
    linear
        && !is_vision
        && !is_parameter(name)
        && place_of(name) == Place::Linear
        && (rows * columns).is_multiple_of(4)
}

/// Whether a tensor that is not part of a weight exists only for the quantization: the scale of a quantized module's
/// activations, or of the key-value cache.
fn is_left_behind(name: &str, quantized: &HashSet<&str>) -> bool {
    const BESIDE: [&str; 9] = [
        "input_scale",
        "input_zero_point",
        "input_global_scale",
        "output_scale",
        "output_zero_point",
        "activation_scale",
        "weight_format",
        "weight_zero_point",
        "weight_g_idx",
    ];
    const CACHE: [&str; 4] = ["k_scale", "v_scale", "q_scale", "kv_scale"];
    let Some((stem, last)) = name.rsplit_once('.') else { return false };
    let module = stem.strip_suffix(".weight").unwrap_or(stem);
    let attention = stem.contains("attn") || stem.contains("attention");
    quantized.contains(module) && BESIDE.contains(&last)
        || CACHE.contains(&last) && (quantized.contains(stem) || attention && !quantized.is_empty())
}
