//! Layouts that are known by the names of their tensors, whatever the config says: for messages about what is not read.

use safetensors::Dtype;

/// A layout that was recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recognized {
    /// The program or library that writes it.
    pub(crate) name: &'static str,
    /// What to do with such a file.
    pub(crate) hint: &'static str,
}

/// What the end of a tensor's name, and its dtype where it matters, says about the library that wrote the file.
type Sign = (&'static str, Option<Dtype>, Recognized);

const OF_LIBRARY: &str = "dequantize the model to bf16 with that library, and give that folder";

const SIGNS: &[Sign] = &[
    (
        "._data",
        None,
        Recognized {
            name: "optimum-quanto",
            hint: "put the quanto_qmap.json that was saved with it beside the weights: it says how they are quantized",
        },
    ),
    (".W_q", None, Recognized { name: "HQQ", hint: OF_LIBRARY }),
    (".trellis", None, Recognized { name: "ExLlamaV3 (EXL3)", hint: OF_LIBRARY }),
    (".q_weight", None, Recognized { name: "ExLlamaV2 (EXL2)", hint: OF_LIBRARY }),
    ("._weight_qdata", None, Recognized { name: "torchao", hint: OF_LIBRARY }),
    (
        ".weight",
        Some(Dtype::U32),
        Recognized {
            name: "MLX",
            hint: "put the model's own config.json, with its `quantization`, beside the weights, or convert it with \
                   `mlx_lm.convert --dequantize`",
        },
    ),
    (".scale_weight", None, Recognized { name: "ComfyUI", hint: OF_LIBRARY }),
    (".comfy_quant", None, Recognized { name: "ComfyUI", hint: OF_LIBRARY }),
    (".qweight", None, Recognized { name: "GPTQ or AWQ", hint: CONFIG }),
    (".weight_packed", None, Recognized { name: "compressed-tensors", hint: CONFIG }),
];

const CONFIG: &str = "put the model's own config.json, with its quantization_config, beside the weights";

/// The layout that a tensor's name shows, if any does.
pub(crate) fn recognized(name: &str, dtype: Dtype) -> Option<Recognized> {
    let fits = |(end, of, _): &&Sign| name.ends_with(end) && of.is_none_or(|of| of == dtype);
    SIGNS.iter().find(fits).map(|(_, _, recognized)| *recognized)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::recognized;

    #[test]
    fn by_the_end_of_a_name() {
        let name = |tensor, dtype| recognized(tensor, dtype).map(|found| found.name);
        assert_eq!(name("model.layers.0.mlp.up_proj.weight._data", Dtype::I8), Some("optimum-quanto"));
        assert_eq!(name("x.weight", Dtype::U32), Some("MLX"));
        assert_eq!(name("x.weight", Dtype::U8), None);
        assert_eq!(name("x.codes", Dtype::U8), None);
    }
}
