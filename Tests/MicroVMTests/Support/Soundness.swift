import Testing

@testable import MicroVM

/// Expects of a module all that a loader relies on without looking again.
func expectSound(_ module: GuestModule, sourceLocation: SourceLocation = #_sourceLocation) {
    func require(_ condition: Bool, _ what: String) {
        // Not `#expect` on every condition: there are millions of them.
        if !condition { Issue.record("not sound: \(what)", sourceLocation: sourceLocation) }
    }
    let page: UInt64 = 4096
    require(module.imageSize % page == 0 && module.imageSize <= 1 << 32 && module.imageSize > 0, "image size")
    require(module.imageAlignment >= page && module.imageAlignment <= 2 << 20, "image alignment")

    var end: UInt64 = 0
    for segment in module.segments {
        require(segment.address >= end, "segments in order")
        end = segment.address + segment.memorySize
        require(segment.memorySize > 0 && segment.fileSize <= segment.memorySize, "segment sizes")
        require(segment.fileOffset + segment.fileSize <= UInt64(module.bytes.count), "segment in the file")
        require(!segment.permissions.isSuperset(of: [.write, .execute]), "segment permissions")
    }
    require(end <= module.imageSize, "segments in the image")

    end = 0
    for mapping in module.mappings {
        require(mapping.range.lowerBound >= end && !mapping.range.isEmpty, "mappings in order")
        require(mapping.range.lowerBound % page == 0 && mapping.range.upperBound % page == 0, "mappings of pages")
        require(mapping.permissions.contains(.read), "mappings are readable")
        require(!mapping.permissions.isSuperset(of: [.write, .execute]), "mapping permissions")
        end = mapping.range.upperBound
    }
    require(end <= module.imageSize, "mappings in the image")

    for relocation in module.relocations {
        let index = module.segments.index(containing: relocation.offset)
        let segment = index.map { module.segments[$0] }
        require(segment?.permissions.contains(.write) == true, "relocations in writable segments")
        require(relocation.offset + 8 <= segment?.end ?? 0, "relocations inside a segment")
        if case .importAddress(let index, _) = relocation.value {
            require(module.imports.indices.contains(index), "relocations to imports that there are")
        }
    }
    var previous: GuestModule.Export?
    for export in module.exports {
        if let previous { require(previous.name.utf8.lexicographicallyPrecedes(export.name.utf8), "exports sorted") }
        require(module.export(named: export.name) == export, "exports found by name")
        require(export.address + export.size <= module.imageSize, "exports in the image")
        previous = export
    }
    if let storage = module.threadLocalStorage {
        require(storage.fileSize <= storage.memorySize && storage.memorySize <= storage.distance, "thread-local sizes")
        require(storage.memorySize > 0 && storage.distance <= 1 << 20 + page, "thread-local limits")
        require(storage.alignment > 0 && page % storage.alignment == 0, "thread-local alignment")
        require(storage.fileOffset + storage.fileSize <= UInt64(module.bytes.count), "thread-local values in the file")
        require(storage.address + storage.fileSize <= module.imageSize, "thread-local values in the image")
    }
    let initializers = module.initializers
    require(initializers.arrayAddress + UInt64(initializers.arrayCount) * 8 <= module.imageSize, "initialisers")
    if let function = initializers.function {
        let mapping = module.mappings.first { $0.range.contains(function) }
        require(mapping?.permissions.contains(.execute) == true, "the initialiser is executable")
    }
    for address in [0, 1, 0x1000, 0x1001, 0x15ff, 0x2000, module.imageSize / 2, module.imageSize, .max] {
        let symbol = module.symbol(at: address)
        require(symbol.map { $0.offset <= address } ?? true, "symbols before their addresses")
    }
}
