//! Rotary frequencies, following transformers' `modeling_rope_utils.py`.
//!
//! Su et al. 2021 (RoPE); Peng et al. 2023 (YaRN, arXiv 2309.00071); Ding et al. 2024 (LongRoPE, arXiv 2402.13753).

use std::f64::consts::PI;

use serde_json::Value;

use super::config::Fields;
use crate::Result;

/// The rotary frequencies of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians per position, one for each rotated pair of dimensions; dimensions beyond twice as many are not rotated.
    pub frequencies: Vec<f64>,
    /// The factor of sine and cosine.
    pub scale: f64,
    /// For LongRoPE: the token count above which texts use other frequencies, and those frequencies.
    pub long: Option<(usize, Vec<f64>)>,
}

impl Rotary {
    /// The frequencies of a layer with or without a sliding window.
    pub(super) fn of(config: &Fields<'_>, head_dim: usize, sliding: bool) -> Result<Rotary> {
        let parameters = Parameters::of(config, sliding);
        let share = parameters.number("partial_rotary_factor").or(config.number("partial_rotary_factor"));
        let dim = (head_dim as f64 * share.unwrap_or(1.0)) as usize / 2 * 2;
        let base = parameters.base(config, sliding);
        let plain: Vec<f64> = (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64)).collect();
        let rotary = |frequencies, scale| Rotary { frequencies, scale, long: None };
        let need = |key: &str| {
            let value = parameters.number(key).filter(|value| *value > 0.0);
            value.ok_or_else(|| config.wrong(&format!("no usable '{key}' for the rotary embedding")))
        };
        match parameters.kind() {
            // Dynamic scaling only begins beyond the longest text that the model was trained on.
            "default" | "dynamic" => Ok(rotary(plain, 1.0)),
            "linear" => {
                let factor = need("factor")?;
                Ok(rotary(plain.into_iter().map(|f| f / factor).collect(), 1.0))
            }
            "llama3" => Ok(rotary(
                llama3(
                    &plain,
                    need("factor")?,
                    [need("low_freq_factor")?, need("high_freq_factor")?],
                    need("original_max_position_embeddings")?,
                ),
                1.0,
            )),
            "yarn" if config.model_type != "phi3" => {
                let original = need("original_max_position_embeddings")?;
                let factor = parameters.number("factor").map_or_else(
                    || config.size("max_position_embeddings").map(|longest| longest as f64 / original),
                    Ok,
                )?;
                Ok(rotary(parameters.yarn(&plain, base, factor, original), parameters.yarn_scale(factor)))
            }
            "longrope" | "su" | "yarn" => parameters.long(config, &plain),
            other => Err(config.wrong(&format!("unknown rotary embedding '{other}'"))),
        }
    }
}

/// The rotary parameters of one kind of layer, wherever a config has them.
struct Parameters<'a>(Option<&'a Value>);

impl<'a> Parameters<'a> {
    fn of(config: &Fields<'a>, sliding: bool) -> Parameters<'a> {
        let kind = if sliding { "sliding_attention" } else { "full_attention" };
        if let Some(by_kind) = config.optional("rope_parameters") {
            let nested =
                by_kind.get("full_attention").is_some() || by_kind.get("sliding_attention").is_some();
            return Parameters(if nested { by_kind.get(kind) } else { Some(by_kind) });
        }
        // Before transformers 5: Gemma 3 scales only the layers with full attention.
        let local = sliding && config.model_type.starts_with("gemma3");
        Parameters(config.optional("rope_scaling").filter(|_| !local))
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.0?.get(key)?.as_f64()
    }

    fn kind(&self) -> &'a str {
        let kind = |key| self.0.and_then(|fields| fields.get(key)).and_then(Value::as_str);
        kind("rope_type").or_else(|| kind("type")).unwrap_or("default")
    }

    fn base(&self, config: &Fields<'_>, sliding: bool) -> f64 {
        let gemma3 = config.model_type.starts_with("gemma3");
        let (key, default) = match (gemma3, sliding) {
            (true, true) => ("rope_local_base_freq", 1e4),
            (true, false) => ("rope_theta", 1e6),
            (false, _) if config.model_type == "mixtral" => ("rope_theta", 1e6),
            (false, _) => ("rope_theta", 1e4),
        };
        self.number("rope_theta").or_else(|| config.number(key)).unwrap_or(default)
    }

    /// Frequencies between those of the model as trained (the fast ones) and those divided by `factor` (the slow ones).
    fn yarn(&self, plain: &[f64], base: f64, factor: f64, original: f64) -> Vec<f64> {
        let dim = 2.0 * plain.len() as f64;
        let turns = |key, default| self.number(key).filter(|value| *value > 0.0).unwrap_or(default);
        let place = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (place(turns("beta_fast", 32.0)), place(turns("beta_slow", 1.0)));
        let truncate = self.0.and_then(|fields| fields.get("truncate")).and_then(Value::as_bool);
        if truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let mix = |(i, f): (usize, &f64)| {
            let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * slow + f * (1.0 - slow)
        };
        plain.iter().enumerate().map(mix).collect()
    }

    fn yarn_scale(&self, factor: f64) -> f64 {
        let mscale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let nonzero = |key| self.number(key).filter(|value| *value != 0.0);
        self.number("attention_factor").unwrap_or_else(|| {
            match (nonzero("mscale"), nonzero("mscale_all_dim")) {
                (Some(scale), Some(all_dim)) => mscale(scale) / mscale(all_dim),
                _ => mscale(1.0),
            }
        })
    }

    fn long(&self, config: &Fields<'_>, plain: &[f64]) -> Result<Rotary> {
        let factors = |key: &str| {
            let list = self.0.and_then(|fields| fields.get(key)).and_then(Value::as_array);
            let list: Option<Vec<f64>> = list.map(|list| list.iter().filter_map(Value::as_f64).collect());
            let fits = list.filter(|list| list.len() == plain.len() && list.iter().all(|f| *f > 0.0));
            fits.ok_or_else(|| config.wrong(&format!("no usable '{key}' for the rotary embedding")))
        };
        let (short, long) = (factors("short_factor")?, factors("long_factor")?);
        let longest = config.size("max_position_embeddings")? as f64;
        let original = config
            .number("original_max_position_embeddings")
            .or_else(|| self.number("original_max_position_embeddings"))
            .filter(|value| *value > 1.0)
            .ok_or_else(|| config.wrong("no usable 'original_max_position_embeddings'"))?;
        let factor = self.number("factor").unwrap_or(longest / original);
        let scale = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let divided = |by: &[f64]| plain.iter().zip(by).map(|(f, by)| f / by).collect::<Vec<_>>();
        Ok(Rotary {
            frequencies: divided(&short),
            scale: self.number("attention_factor").unwrap_or(scale),
            long: Some((original as usize, divided(&long))),
        })
    }
}

/// Llama 3.1's frequencies: slow ones are divided by `factor`, fast ones kept, those between interpolated.
fn llama3(plain: &[f64], factor: f64, [low, high]: [f64; 2], original: f64) -> Vec<f64> {
    let scaled = |&f: &f64| {
        let wavelength = 2.0 * PI / f;
        if wavelength < original / high {
            return f;
        }
        if wavelength > original / low {
            return f / factor;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    };
    plain.iter().map(scaled).collect()
}
