"""The engine: parts, axes, specs, registry, key maps, context, errors. It knows no architecture."""
