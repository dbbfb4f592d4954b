//! Graphs of every operator.

mod bits;
mod chains;
mod constants;
mod edges;
mod linear;
mod maps;
mod movement;
mod pools;

use crate::{Case, Rng};

/// Makes a random graph of one kind.
type Make = fn(&mut Rng) -> requant_model::Graph;

/// Every case of every suite, `rounds` random ones of each kind.
pub fn all(rounds: usize, seed: u64) -> Vec<Case> {
    let kinds: [(&str, Make); 29] = [
        ("conv", linear::conv),
        ("depthwise", linear::depthwise),
        ("gemm", linear::gemm),
        ("accumulator", linear::accumulator),
        ("residual", linear::residual),
        ("computed weights", linear::computed_weights),
        ("matmul", linear::mat_mul),
        ("add", maps::add),
        ("mul", maps::mul),
        ("table", maps::table),
        ("rescale", maps::rescale),
        ("softmax", maps::softmax),
        ("max pool", pools::max_pool),
        ("average pool", pools::average_pool),
        ("mean", pools::mean),
        ("resize", pools::resize),
        ("concat and slice", movement::concat_slice),
        (
            "pad, transpose and reshape",
            movement::pad_transpose_reshape,
        ),
        ("edges", edges::edges),
        ("dynamic", edges::dynamic),
        ("chain", chains::chain),
        ("beside the batch", constants::beside_the_batch),
        ("ranks", constants::ranks),
        ("low-bit conv", bits::conv),
        ("low-bit gemm", bits::gemm),
        ("binary network", bits::network),
        ("layer norm", maps::layer_norm),
        ("dynamic requantized", edges::dynamic_requantized),
        ("real", linear::real),
    ];
    let mut cases = Vec::new();
    for (kind, (name, make)) in kinds.into_iter().enumerate() {
        for round in 0..rounds {
            let mut rng = Rng::new(seed ^ (kind as u64) << 32 ^ round as u64);
            cases.push(Case {
                name: format!("{name} {round}"),
                graph: make(&mut rng),
            });
        }
    }
    cases
}
