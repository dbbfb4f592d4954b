//! Instance groups: how many instances a model has, and on which devices.
//!
//! `count` is for each GPU, as in Triton. What is left open is filled in with what is true, so that the
//! ModelConfig call says where a model computes.

use requant_proto::inference::{ModelInstanceGroup, model_instance_group::Kind};

use super::{ConfigError, unsupported, value};
use crate::engine::Place;

/// Most instances of a model, over all groups and GPUs.
const MAX_INSTANCES: usize = 64;

/// Instances on a GPU where the configuration does not say: while one computes, the other copies.
const ON_A_GPU: i32 = 2;

/// Checks groups against the GPUs of these ordinals and fills their gaps; gives the place of every instance,
/// neighbours on different GPUs.
///
/// # Errors
/// The first field that cannot be honoured.
pub(super) fn complete(
    name: &str,
    groups: &mut Vec<ModelInstanceGroup>,
    gpus: &[usize],
) -> Result<Vec<Place>, ConfigError> {
    if groups.is_empty() {
        groups.push(ModelInstanceGroup::default());
    }
    let mut places = Vec::new();
    for (index, group) in groups.iter_mut().enumerate() {
        check_fields(group)?;
        let on_gpu = match Kind::try_from(group.kind) {
            Ok(Kind::Auto) => !gpus.is_empty() || !group.gpus.is_empty(),
            Ok(Kind::Gpu) if gpus.is_empty() => {
                return Err(ConfigError::Unsupported {
                    field: "instance_group.kind KIND_GPU".to_owned(),
                    reason: ": this server computes on no GPU",
                });
            }
            Ok(Kind::Gpu) => true,
            Ok(Kind::Cpu) => false,
            Ok(Kind::Model) => return Err(unsupported("instance_group.kind KIND_MODEL")),
            Err(_) => return Err(value("instance_group.kind", group.kind, "a known kind")),
        };
        let among = match on_gpu {
            true => ordinals(group, gpus)?
                .into_iter()
                .map(Place::Device)
                .collect(),
            false if group.gpus.is_empty() => vec![Place::Host],
            false => return Err(unsupported("instance_group.gpus with KIND_CPU")),
        };
        // Zero is protobuf's way of saying nothing.
        let count = match (group.count, on_gpu) {
            (0, true) => ON_A_GPU,
            (0, false) => 1,
            (count, _) => count,
        };
        let each = usize::try_from(count)
            .ok()
            .filter(|each| *each <= MAX_INSTANCES);
        let all = each.map(|each| each * among.len() + places.len());
        let Some(each) = each.filter(|_| all <= Some(MAX_INSTANCES)) else {
            let expected = format!("1 to {MAX_INSTANCES} over all groups and GPUs");
            return Err(value("instance_group.count", group.count, expected));
        };
        places.extend((0..each).flat_map(|_| among.iter().copied()));
        group.count = count;
        group.kind = if on_gpu { Kind::Gpu } else { Kind::Cpu }.into();
        if group.name.is_empty() {
            group.name = format!("{name}_{index}");
        }
    }
    Ok(places)
}

fn check_fields(group: &ModelInstanceGroup) -> Result<(), ConfigError> {
    for (field, set) in [
        ("instance_group.profile", !group.profile.is_empty()),
        ("instance_group.rate_limiter", group.rate_limiter.is_some()),
        ("instance_group.passive", group.passive),
        (
            "instance_group.secondary_devices",
            !group.secondary_devices.is_empty(),
        ),
        ("instance_group.host_policy", !group.host_policy.is_empty()),
    ] {
        if set {
            return Err(unsupported(field));
        }
    }
    Ok(())
}

/// The GPUs of a group: those that it lists, or all, which it then lists.
fn ordinals(group: &mut ModelInstanceGroup, gpus: &[usize]) -> Result<Vec<usize>, ConfigError> {
    if group.gpus.is_empty() {
        group.gpus = gpus
            .iter()
            .filter_map(|&gpu| i32::try_from(gpu).ok())
            .collect();
    }
    let mut found = Vec::new();
    for &listed in &group.gpus {
        let known = usize::try_from(listed)
            .ok()
            .filter(|gpu| gpus.contains(gpu));
        match known.filter(|gpu| !found.contains(gpu)) {
            Some(gpu) => found.push(gpu),
            None => {
                let expected = format!("each at most once of {gpus:?}");
                return Err(value("instance_group.gpus", listed, expected));
            }
        }
    }
    Ok(found)
}

/// Says of instances that were to be on one of the GPUs `fallen` that they are on the CPU.
pub(crate) fn fall(groups: &mut Vec<ModelInstanceGroup>, fallen: &[usize]) {
    let is_fallen = |gpu: &i32| usize::try_from(*gpu).is_ok_and(|gpu| fallen.contains(&gpu));
    let mut more = Vec::new();
    for group in groups.iter_mut() {
        let left: Vec<i32> = group
            .gpus
            .iter()
            .copied()
            .filter(|gpu| !is_fallen(gpu))
            .collect();
        let lost = group.gpus.len() - left.len();
        if lost == 0 {
            continue;
        }
        let on_host = ModelInstanceGroup {
            name: format!("{}_cpu", group.name),
            kind: Kind::Cpu.into(),
            count: group.count * i32::try_from(lost).unwrap_or(1),
            gpus: Vec::new(),
            ..group.clone()
        };
        if left.is_empty() {
            let name = std::mem::take(&mut group.name);
            *group = ModelInstanceGroup { name, ..on_host };
        } else {
            group.gpus = left;
            more.push(on_host);
        }
    }
    groups.extend(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: Kind, count: i32, gpus: &[i32]) -> ModelInstanceGroup {
        ModelInstanceGroup {
            kind: kind.into(),
            count,
            gpus: gpus.to_vec(),
            ..ModelInstanceGroup::default()
        }
    }

    /// Kind, count and GPUs of a group.
    type Shown = (Kind, i32, Vec<i32>);

    /// What groups become: kinds, counts and GPUs, and the places of the instances, -1 for the host.
    fn completed(
        mut groups: Vec<ModelInstanceGroup>,
        gpus: &[usize],
    ) -> Result<(Vec<Shown>, Vec<i32>), String> {
        let places = complete("m", &mut groups, gpus).map_err(|error| error.to_string())?;
        let places = places.into_iter().map(|place| match place {
            Place::Host => -1,
            Place::Device(ordinal) => ordinal as i32,
        });
        Ok((shown(&groups), places.collect()))
    }

    fn shown(groups: &[ModelInstanceGroup]) -> Vec<Shown> {
        let one = |group: &ModelInstanceGroup| (group.kind(), group.count, group.gpus.clone());
        groups.iter().map(one).collect()
    }

    #[test]
    fn without_gpus_instances_are_on_the_host() {
        let (groups, places) = completed(vec![], &[]).unwrap();
        assert_eq!((groups, places), (vec![(Kind::Cpu, 1, vec![])], vec![-1]));
        let (groups, places) = completed(vec![group(Kind::Auto, 3, &[])], &[]).unwrap();
        assert_eq!(
            (groups, places),
            (vec![(Kind::Cpu, 3, vec![])], vec![-1; 3])
        );
        let refused = completed(vec![group(Kind::Gpu, 1, &[])], &[]).unwrap_err();
        assert!(refused.contains("computes on no GPU"), "{refused}");
        let refused = completed(vec![group(Kind::Auto, 1, &[0])], &[]).unwrap_err();
        assert!(refused.contains("instance_group.gpus"), "{refused}");
    }

    #[test]
    fn with_gpus_instances_are_spread_over_them() {
        let (groups, places) = completed(vec![], &[0, 1]).unwrap();
        assert_eq!(groups, [(Kind::Gpu, 2, vec![0, 1])]);
        assert_eq!(places, [0, 1, 0, 1]);
        let wanted = vec![
            group(Kind::Gpu, 1, &[3, 0]),
            group(Kind::Cpu, 2, &[]),
            group(Kind::Auto, 0, &[1]),
        ];
        let (groups, places) = completed(wanted, &[0, 1, 3]).unwrap();
        let expected = [
            (Kind::Gpu, 1, vec![3, 0]),
            (Kind::Cpu, 2, vec![]),
            (Kind::Gpu, 2, vec![1]),
        ];
        assert_eq!(groups, expected);
        assert_eq!(places, [3, 0, -1, -1, 1, 1]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for (wanted, what) in [
            (group(Kind::Gpu, 1, &[2]), "instance_group.gpus"),
            (group(Kind::Gpu, 1, &[-1]), "instance_group.gpus"),
            (group(Kind::Gpu, 1, &[1, 1]), "instance_group.gpus"),
            (group(Kind::Cpu, 1, &[0]), "instance_group.gpus"),
            (group(Kind::Gpu, 33, &[]), "instance_group.count"),
            (group(Kind::Gpu, -1, &[]), "instance_group.count"),
            (group(Kind::Gpu, i32::MAX, &[]), "instance_group.count"),
        ] {
            let refused = completed(vec![wanted], &[0, 1]).unwrap_err();
            assert!(refused.contains(what), "{refused}");
        }
        assert!(completed(vec![group(Kind::Gpu, 32, &[])], &[0, 1]).is_ok());
    }

    #[test]
    fn what_a_gpu_refuses_is_shown_on_the_cpu() {
        let mut groups = vec![group(Kind::Gpu, 2, &[0, 1]), group(Kind::Gpu, 3, &[1])];
        fall(&mut groups, &[1]);
        let expected = [
            (Kind::Gpu, 2, vec![0]),
            (Kind::Cpu, 3, vec![]),
            (Kind::Cpu, 2, vec![]),
        ];
        assert_eq!(shown(&groups), expected);
        fall(&mut groups, &[0, 1]);
        assert!(groups.iter().all(|group| group.kind() == Kind::Cpu));
    }
}
