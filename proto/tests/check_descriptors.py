#!/usr/bin/env python3
"""Compares our protocol descriptors with those that the PyPI package tritonclient[grpc] ships.

Every message, field, enum value and call that we declare must exist there with the same name,
number, type and label. Usage: check_descriptors.py DESCRIPTORS, where DESCRIPTORS is what
`cargo run -q -p requant-proto --example descriptors` writes; `-` reads standard input.
"""

import sys

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

# The Open Inference Protocol has this field, Triton's dialect leaves its number free.
EXTRA = {("inference.ModelMetadataResponse", "properties"): 6}

Field = descriptor_pb2.FieldDescriptorProto


def load(data):
    """Parses one FileDescriptorProto."""
    proto = descriptor_pb2.FileDescriptorProto()
    proto.ParseFromString(data)
    return proto


def flatten(files):
    """Maps full names to messages and enums, nested ones included, and call names to calls."""
    messages, enums, calls = {}, {}, {}

    def add(prefix, message):
        name = f"{prefix}.{message.name}"
        messages[name] = message
        for nested in message.nested_type:
            add(name, nested)
        for enum in message.enum_type:
            enums[f"{name}.{enum.name}"] = enum

    for file in files:
        for message in file.message_type:
            add(file.package, message)
        for enum in file.enum_type:
            enums[f"{file.package}.{enum.name}"] = enum
        for service in file.service:
            for call in service.method:
                calls[f"{file.package}.{service.name}/{call.name}"] = call
    return messages, enums, calls


def facts(message, field):
    """What must agree about a field: number, type, label, the type's name and the oneof."""
    oneof = None
    if field.HasField("oneof_index"):
        oneof = message.oneof_decl[field.oneof_index].name
    type_name = field.type_name.lstrip(".")
    kind, label = Field.Type.Name(field.type), Field.Label.Name(field.label)
    return field.number, kind, label, type_name, oneof


def compare(ours, theirs):
    """Returns the number of things compared and a list of differences."""
    our_messages, our_enums, our_calls = ours
    their_messages, their_enums, their_calls = theirs
    compared, differences = 0, []
    for name, message in our_messages.items():
        other = their_messages.get(name)
        if other is None:
            if name != "inference.ModelMetadataResponse.PropertiesEntry":
                differences.append(f"{name}: message does not exist there")
            continue
        if message.options.map_entry != other.options.map_entry:
            differences.append(f"{name}: a map entry only on one side")
        their_fields = {field.name: field for field in other.field}
        for field in message.field:
            compared += 1
            if EXTRA.get((name, field.name)) == field.number:
                if any(f.number == field.number for f in other.field):
                    differences.append(f"{name}.{field.name}: number {field.number} is taken there")
                continue
            match = their_fields.get(field.name)
            if match is None:
                differences.append(f"{name}.{field.name}: field does not exist there")
            elif facts(message, field) != facts(other, match):
                here, there = facts(message, field), facts(other, match)
                differences.append(f"{name}.{field.name}: {here} here, {there} there")
        our_names = {field.name for field in message.field}
        for missing in sorted(set(their_fields) - our_names):
            differences.append(f"{name}.{missing}: field is missing here")
    for name, enum in our_enums.items():
        other = their_enums.get(name)
        here = {value.name: value.number for value in enum.value}
        there = {value.name: value.number for value in other.value} if other else None
        compared += len(here)
        if here != there:
            differences.append(f"{name}: {here} here, {there} there")
    for name, call in our_calls.items():
        compared += 1
        other = their_calls.get(name)
        shape = lambda c: (c.input_type, c.output_type, c.client_streaming, c.server_streaming)
        if other is None or shape(call) != shape(other):
            differences.append(f"{name}: {call} here, {other} there")
    return compared, differences


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "-":
        data = sys.stdin.buffer.read()
    else:
        with open(sys.argv[1], "rb") as file:
            data = file.read()
    ours = descriptor_pb2.FileDescriptorSet()
    ours.ParseFromString(data)
    theirs = [
        load(module.DESCRIPTOR.serialized_pb) for module in (service_pb2, model_config_pb2)
    ]
    compared, differences = compare(flatten(ours.file), flatten(theirs))
    for difference in differences:
        print(f"DIFFERENT {difference}")
    print(f"{compared} fields, values and calls compared, {len(differences)} differences")
    sys.exit(1 if differences or compared == 0 else 0)


if __name__ == "__main__":
    main()
