//! What is known of the base that an adapter belongs to.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::module_tree::renames::{ModuleTree, Origin};
use crate::checkpoint::module_tree::table::{ExpertConversion, expert_conversion};
use crate::checkpoint::{Checkpoint, Module};
use crate::lora::loader::Loader;
use crate::lora::names::{expert_of, expert_of_stack, is_of_stack, wrapped_by};
use crate::lora::tree::targets;

/// What may stand before the names of a language model, by itself or inside one that sees or hears, in files and in
/// models of different versions of the libraries. What is longer comes first.
const PREFIXES: [&str; 9] = [
    "model.language_model.model.",
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "language_model.",
    "transformer.",
    "text_model.",
    "model.",
    "",
];

/// One module of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseModule {
    /// Its name in the checkpoint's files.
    pub stored: String,
    /// Its name in the model that transformers makes of them, which PEFT wraps.
    pub loaded: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
}

/// What PEFT wraps although it is not a module: a stack of experts, or a matrix that is a parameter.
struct Wrapper<'a, 'b> {
    /// The parameter, or the first of the experts.
    module: &'a BaseModule,
    /// How long the end of its name is, behind the path of what has it.
    end: usize,
    /// What follows that path in an adapter's name.
    rest: &'b str,
    /// Whether the base has its experts singly.
    single: bool,
}

impl Wrapper<'_, '_> {
    /// Its name in an adapter, by this name of its module.
    fn named(&self, module: &str) -> String {
        format!("{}{}", &module[..module.len() - self.end - 1], self.rest)
    }
}

/// The modules of a base; or its type alone.
#[derive(Clone, Debug, Default)]
pub struct BaseModules {
    model_type: Option<String>,
    /// The `model_type` at the top of the config.
    outer_type: Option<String>,
    /// Whether the head is the embedding.
    tied: Option<bool>,
    /// The one program that an adapter of them is for.
    loader: Option<Loader>,
    known: Option<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    tree: ModuleTree,
    modules: Vec<BaseModule>,
    by_loaded: BTreeMap<String, usize>,
    by_stored: BTreeMap<String, usize>,
    /// Every module, containers too, as the model names them.
    paths: BTreeSet<String>,
    /// Every tensor, by its name in the model and by that in the files.
    tensors: BTreeMap<String, String>,
}

impl BaseModules {
    /// A base of which nothing but its `model_type` is known.
    pub fn of_type(model_type: &str) -> BaseModules {
        let model_type = Some(model_type.to_owned());
        BaseModules { outer_type: model_type.clone(), model_type, ..BaseModules::default() }
    }

    /// The same, with what is known of whether its head is its embedding.
    pub fn with_tied(self, tied: Option<bool>) -> BaseModules {
        BaseModules { tied, ..self }
    }

    /// Whether the head is the embedding, if that is known: llama.cpp then has no LoRA on either.
    pub fn tied(&self) -> Option<bool> {
        self.tied
    }

    /// The modules of `base`.
    pub fn of(base: &Checkpoint) -> BaseModules {
        let (config, tree) = (base.config(), ModuleTree::of(base.config()));
        let module = |module: &Module| BaseModule {
            stored: module.name().to_owned(),
            loaded: tree.module_of(module.name()),
            shape: module.shape(),
        };
        let mut modules: Vec<BaseModule> = base.modules().map(module).collect();
        // A head that is the embedding is a module of the model, though no file holds it.
        let head = tree.head();
        if let Some(embedding) = base.module(head).filter(|module| module.name() != head) {
            let (stored, loaded, shape) = (head.to_owned(), tree.module_of(head), embedding.shape());
            modules.push(BaseModule { stored, loaded, shape });
        }
        let by = |name: fn(&BaseModule) -> &String| {
            modules.iter().enumerate().map(|(at, module)| (name(module).clone(), at)).collect()
        };
        let stored = || base.tensors().map(|tensor| tensor.name().to_owned());
        let mut tensors: BTreeMap<String, String> = stored().map(|name| (name.clone(), name)).collect();
        tensors.extend(stored().map(|name| (tree.module_of(&name), name)));
        let mut loaded: Vec<String> = stored().map(|name| tree.module_of(&name)).collect();
        // Layers that the files hold otherwise: within a matrix, or in parts.
        loaded.extend(modules.iter().map(|module| format!("{}.weight", module.loaded)));
        loaded.extend(stored().flat_map(|name| layers_in_another_order(&tree, &name)));
        let known = Known {
            by_loaded: by(|module| &module.loaded),
            by_stored: by(|module| &module.stored),
            paths: targets::paths_of(loaded.iter().map(String::as_str)),
            modules,
            tensors,
            tree,
        };
        let own = |name: Option<&str>| name.map(str::to_owned);
        BaseModules {
            model_type: own(config.text_model_type().or(config.model_type())),
            outer_type: own(config.model_type()),
            tied: Some(config.tie_word_embeddings()),
            loader: None,
            known: Some(known),
        }
    }

    /// The same for an adapter that `loader` alone is to load. Without one, an adapter is what most programs load, and
    /// what PEFT needs where they differ.
    pub fn for_loader(self, loader: Option<Loader>) -> BaseModules {
        BaseModules { loader, ..self }
    }

    /// Whether an adapter of them is for PEFT, alone or among others.
    fn is_for_peft(&self) -> bool {
        self.loader.is_none_or(|loader| loader == Loader::Peft)
    }

    /// The name of one expert's projection, where the adapter is for a program that takes them singly and `stored` is
    /// that expert in a stack: Nemotron-H, whose experts are single ones in its files, and in the programs that serve
    /// it.
    pub(crate) fn single_expert(&self, stored: &str) -> Option<String> {
        if self.is_for_peft() || !self.is_single_elsewhere(stored) {
            return None;
        }
        let loaded = self.name_in_model(stored);
        let (stack, expert) = expert_of_stack(&loaded)?;
        let (owner, kind) = stack.rsplit_once('.')?;
        Some(format!("{owner}.{expert}.{kind}"))
    }

    /// Whether `stored` is an expert that PEFT has in a stack and every other program singly.
    pub(crate) fn is_single_elsewhere(&self, stored: &str) -> bool {
        let gateless = self.expert_conversion_of_type() == Some(ExpertConversion::Nothing);
        gateless && expert_of_stack(stored).is_some_and(|(stack, _)| stack.contains("mixer.experts."))
    }

    /// Whether `loader` takes a LoRA on `module`, by its name in the files, in one of the forms that it can be written
    /// in. What each program does with stacks of experts, experts without a gate and towers: `rules/programs`.
    pub(crate) fn takes(&self, loader: Loader, module: &str) -> bool {
        let is_stack = is_of_stack(module);
        match loader {
            Loader::Peft => true,
            Loader::Vllm => !is_stack || self.is_stacked_in_vllm() || self.is_single_elsewhere(module),
            Loader::Sglang => !is_stack && !self.is_in_tower(module),
            Loader::LlamaCpp => (!is_stack || self.is_single_elsewhere(module)) && !self.is_in_tower(module),
        }
    }

    fn is_in_tower(&self, module: &str) -> bool {
        self.stored(module).is_some_and(|known| self.is_outside_language_model(known))
    }

    /// Whether a module is of a tower that sees or hears, or of what joins one to the language model.
    pub(crate) fn is_outside_language_model(&self, module: &BaseModule) -> bool {
        const SPEAKS: [&str; 3] = ["language_model", "text_model", "lm_head"];
        let speaks = |module: &BaseModule| module.loaded.split('.').any(|part| SPEAKS.contains(&part));
        self.is_inside_another() && !speaks(module) && self.modules().iter().any(speaks)
    }

    /// Whether vLLM keeps the model's experts as stacks (`is_3d_moe_weight`), and so takes adapters of stacks.
    pub(crate) fn is_stacked_in_vllm(&self) -> bool {
        const STACKED: [&str; 6] = [
            "gpt_oss",
            "interns1_pro",
            "qwen3_5_moe",
            "qwen3_omni_moe",
            "qwen3_omni_moe_thinker",
            "qwen3_vl_moe",
        ];
        let types = [&self.model_type, &self.outer_type];
        types.into_iter().flatten().any(|name| STACKED.contains(&name.trim_end_matches("_text")))
    }

    /// Whether PEFT refuses every adapter of this model.
    pub(crate) fn is_refused_by_peft(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.tree.is_refused_by_peft())
    }

    /// The `model_type` of the model that speaks.
    pub fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    /// Whether the language model is inside of a model that sees or hears.
    fn is_inside_another(&self) -> bool {
        self.outer_type != self.model_type
    }

    /// What PEFT does with single experts, where the model keeps them as stacks; `None` where the adapter is not for
    /// PEFT.
    pub fn expert_conversion(&self) -> Option<ExpertConversion> {
        self.expert_conversion_of_type().filter(|_| self.is_for_peft())
    }

    fn expert_conversion_of_type(&self) -> Option<ExpertConversion> {
        expert_conversion(self.outer_type.as_deref()?)
    }

    /// Where the names of its modules were learned; `None` where they are not known.
    pub fn origin(&self) -> Option<&Origin> {
        Some(self.known.as_ref()?.tree.origin())
    }

    /// Its modules, by their names in the files.
    pub fn modules(&self) -> &[BaseModule] {
        self.known.as_ref().map_or(&[], |known| &known.modules)
    }

    /// Every path of a module in the model, containers among them.
    pub(crate) fn paths(&self) -> Option<&BTreeSet<String>> {
        Some(&self.known.as_ref()?.paths)
    }

    /// The path in the model of the experts of which `projection`, by the name that loaders know it by, is one's.
    pub(crate) fn experts_in_model(&self, projection: &str) -> Option<String> {
        let stored = &self.resolve(projection)?.stored;
        let (path, ..) = expert_of(stored)?;
        Some(self.known.as_ref()?.tree.experts_path(path))
    }

    /// Whether it has the module that an adapter means by `name`; `None` where its modules are not known.
    pub fn has(&self, name: &str) -> Option<bool> {
        self.known.as_ref().map(|_| self.resolve(name).is_some())
    }

    /// The module that the model calls `name`.
    pub fn loaded(&self, name: &str) -> Option<&BaseModule> {
        let known = self.known.as_ref()?;
        known.by_loaded.get(name).map(|at| &known.modules[*at])
    }

    /// The module that the files call `name`.
    pub fn stored(&self, name: &str) -> Option<&BaseModule> {
        let known = self.known.as_ref()?;
        known.by_stored.get(name).map(|at| &known.modules[*at])
    }

    /// The model's name for the module that the files call `stored`; that name itself where there is no such module.
    pub fn name_in_model(&self, stored: &str) -> String {
        self.stored(stored).map_or_else(|| stored.to_owned(), |module| module.loaded.clone())
    }

    /// What the keys of an adapter call the module that the files call `stored`: by the model's name, but where PEFT
    /// itself renames the keys.
    pub fn key_name(&self, stored: &str) -> String {
        self.stored(stored).map_or_else(|| stored.to_owned(), |module| self.key_of(module))
    }

    /// What the keys of an adapter call this module of the base.
    pub(crate) fn key_of(&self, module: &BaseModule) -> String {
        match self.known.as_ref().map(|known| &known.tree).filter(|tree| tree.is_keyed_as_files()) {
            None => module.loaded.clone(),
            // These files have the model's own names.
            Some(tree) if module.stored == module.loaded => tree.published_name_of(&module.loaded),
            Some(_) => module.stored.clone(),
        }
    }

    /// The name in an adapter's keys for what this one calls `name`; that itself where the base has no such module.
    pub fn key_name_of(&self, name: &str) -> String {
        if let Some(module) = self.resolve(name) {
            return self.key_of(module);
        }
        let wrapper = self.wrapper(name).filter(|wrapper| !wrapper.single);
        wrapper.map_or_else(|| name.to_owned(), |wrapper| wrapper.named(&wrapper.module.loaded))
    }

    /// The module that an adapter means by `name`: by the model's names, by the files', or by either with another of
    /// the prefixes that libraries have put before a language model or a tower; of an expert of a stack also by the
    /// name that programs have for it which keep experts singly.
    pub fn resolve(&self, name: &str) -> Option<&BaseModule> {
        let direct = |name: &str| self.loaded(name).or_else(|| self.stored(name));
        // As published files name it, where these have the model's own names.
        let published = || direct(&self.known.as_ref()?.tree.module_of(name));
        let joined = || {
            let (path, expert, kind) = expert_of(name)?;
            let stacked = format!("{path}.{kind}.{expert}");
            let direct = |name: &str| direct(name).filter(|module| self.is_single_elsewhere(&module.stored));
            direct(&stacked).or_else(|| spellings(&stacked).find_map(|other| direct(&other)))
        };
        let spelled = || spellings(name).find_map(|other| direct(&other));
        direct(name).or_else(published).or_else(spelled).or_else(joined)
    }

    /// The stored name of the tensor that an adapter means by `name`, by the same rules.
    pub fn resolve_tensor(&self, name: &str) -> Option<&str> {
        let tensors = &self.known.as_ref()?.tensors;
        let found = tensors.get(name).or_else(|| spellings(name).find_map(|other| tensors.get(&other)));
        found.map(String::as_str)
    }

    /// By the files' names, the module name under which PEFT keeps the factors of a stack of experts, or of a matrix
    /// that is a parameter, where an adapter calls it `name`. `None` where the base has no such thing.
    pub(crate) fn stored_name_of_wrapper(&self, name: &str) -> Option<String> {
        self.wrapper(name).map(|wrapper| wrapper.named(&wrapper.module.stored))
    }

    /// What PEFT wraps under `name`, if that is not a module of its own.
    fn wrapper<'a>(&self, name: &'a str) -> Option<Wrapper<'_, 'a>> {
        wrapped_by(name).find_map(|(path, kind)| {
            // Of a stack the first expert tells, whichever way the files have it; else the parameter itself.
            let ends =
                [(format!("{kind}.0"), false), ("0.down_proj".to_owned(), true), ("0.w2".to_owned(), true)];
            let ends = ends.into_iter().chain([(kind.to_owned(), false)]);
            ends.filter(|(end, _)| !end.starts_with("0.") || path.ends_with(".experts")).find_map(
                |(end, single)| {
                    let module = self.resolve(&format!("{path}.{end}"))?;
                    Some(Wrapper { module, end: end.len(), rest: &name[path.len()..], single })
                },
            )
        })
    }
}

/// The weights of the model's layers whose rows the tensor of this name holds, in another order.
fn layers_in_another_order(tree: &ModuleTree, stored: &str) -> Vec<String> {
    let layers = tree.reordered_layers_of(stored.strip_suffix(".weight").unwrap_or(stored));
    layers.unwrap_or_default().into_iter().map(|layer| format!("{layer}.weight")).collect()
}

/// `name` with each other prefix in place of its own.
fn spellings(name: &str) -> impl Iterator<Item = String> {
    let rests = PREFIXES.iter().filter_map(move |prefix| name.strip_prefix(prefix));
    rests.flat_map(|rest| PREFIXES.iter().map(move |prefix| format!("{prefix}{rest}")))
}
