//! A toy format: every weight is one sign under one scale for the whole tensor.

use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use trephine::Result;
use trephine::quant::{
    Capabilities, Dequantize, Format, FoundWeight, Scheme, SchemeKind, TensorInfo, Tensors,
};

use crate::quant::{Shelf, conforms, within};

// The toy.

#[derive(Debug)]
struct SignFormat;

impl Format for SignFormat {
    fn kind(&self) -> SchemeKind {
        SchemeKind::Quantized
    }

    fn label(&self) -> String {
        "signs".to_owned()
    }

    fn weights(&self, lead: &TensorInfo, tensors: &dyn Tensors) -> Result<Vec<FoundWeight>> {
        let Some(module) = lead.name.strip_suffix(".signs") else { return Ok(Vec::new()) };
        let scale = tensors.stored(&format!("{module}.scale")).unwrap();
        let weight = Arc::new(Signs { tensors: [lead.clone(), scale.clone()] });
        Ok(vec![FoundWeight { module: module.to_owned(), weight, quantized: true }])
    }
}

#[derive(Debug)]
struct Signs {
    tensors: [TensorInfo; 2],
}

impl Dequantize for Signs {
    fn shape(&self) -> [usize; 2] {
        [self.tensors[0].shape[0], self.tensors[0].shape[1]]
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn spans(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        vec![rows.start * self.shape()[1]..rows.end * self.shape()[1], 0..4]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::DECODING_ONLY
    }

    fn dequantize(&self, _: Range<usize>, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
        let scale = f32::from_le_bytes(parts[1].try_into().unwrap());
        out.iter_mut().zip(parts[0]).for_each(|(out, sign)| *out = if *sign == 0 { scale } else { -scale });
        Ok(())
    }
}

// Its trial.

#[test]
fn a_new_format_conforms() {
    let (rows, columns, scale) = (131, 5, 0.125f32);
    let signs: Vec<u8> = (0..rows * columns).map(|i| (i % 3 == 0).into()).collect();
    let expected: Vec<f32> = signs.iter().map(|sign| if *sign == 0 { scale } else { -scale }).collect();
    let shapes: [(&str, Dtype, &[usize]); 2] =
        [("m.signs", Dtype::U8, &[rows, columns]), ("m.scale", Dtype::F32, &[])];
    let shelf = Shelf::new(&shapes);
    let scheme = Scheme::of(Box::new(SignFormat));
    assert_eq!((scheme.label(), scheme.kind()), ("signs".to_owned(), SchemeKind::Quantized));
    let found = scheme.weights(shelf.stored("m.signs").unwrap(), &shelf).unwrap();
    let whole = [signs, scale.to_le_bytes().to_vec()];
    conforms("signs", &*found[0].weight, &whole, &expected, &expected);
    within(&*found[0].weight, &whole, "signs");
}
