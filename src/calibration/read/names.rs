//! llama.cpp's names of the linear layers that Hugging Face's files have by other names. Which inputs a layer has does
//! not depend on how its rows are ordered, so one table serves all architectures.

/// Last part of the module's name, and llama.cpp's name of the tensor within its layer.
const INSIDE: [(&str, &str); 9] = [
    ("q_proj", "attn_q"),
    ("k_proj", "attn_k"),
    ("v_proj", "attn_v"),
    ("qkv_proj", "attn_qkv"),
    ("o_proj", "attn_output"),
    ("gate_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("gate_up_proj", "ffn_up"),
    ("down_proj", "ffn_down"),
];

/// The same of Mixtral's experts.
const EXPERTS: [(&str, &str); 3] = [("w1", "ffn_gate"), ("w3", "ffn_up"), ("w2", "ffn_down")];

/// llama.cpp's name of the tensor that `module` is, and which expert of it; `None` where it has none that is
/// multiplied with inputs.
pub(super) fn ggml_name(module: &str) -> Option<(String, Option<usize>)> {
    if module == "lm_head" || module.ends_with(".lm_head") {
        return Some(("output.weight".to_owned(), None));
    }
    let (_, rest) = module.rsplit_once("layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let (path, last) = rest.rsplit_once('.')?;
    let known = INSIDE.iter().chain(&EXPERTS).find(|(theirs, _)| *theirs == last)?.1;
    let expert = path.rsplit_once("experts.").map(|(_, expert)| expert.parse::<usize>());
    let (end, expert) = match expert {
        Some(Ok(expert)) => ("_exps", Some(expert)),
        Some(Err(_)) => return None,
        None if path.ends_with("shared_expert") || path.ends_with("shared_experts") => ("_shexp", None),
        None => ("", None),
    };
    Some((format!("blk.{layer}.{known}{end}.weight"), expert))
}

#[cfg(test)]
mod tests {
    use super::ggml_name;

    #[test]
    fn modules_have_the_names_of_llama_cpp() {
        let name = |module: &str| ggml_name(module).map(|(name, expert)| format!("{name} {expert:?}"));
        let expected = [
            ("model.layers.3.self_attn.q_proj", "blk.3.attn_q.weight None"),
            ("model.language_model.layers.12.mlp.down_proj", "blk.12.ffn_down.weight None"),
            ("model.layers.0.mlp.experts.7.up_proj", "blk.0.ffn_up_exps.weight Some(7)"),
            ("model.layers.0.block_sparse_moe.experts.7.w2", "blk.0.ffn_down_exps.weight Some(7)"),
            ("model.layers.0.mlp.shared_expert.gate_proj", "blk.0.ffn_gate_shexp.weight None"),
            ("lm_head", "output.weight None"),
        ];
        for (module, expected) in expected {
            assert_eq!(name(module).as_deref(), Some(expected), "{module}");
        }
        for none in
            ["model.embed_tokens", "model.layers.x.mlp.up_proj", "model.layers.1.mlp.gate", "vision.fc1"]
        {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
