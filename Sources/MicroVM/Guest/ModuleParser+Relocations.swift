extension ModuleParser {
    /// Checks and translates every relocation.
    mutating func parseRelocations() throws(SandboxError) {
        relocations.reserveCapacity(
            relocationTables.reduce(0) { $0 + Int(($1.upperBound - $1.lowerBound) / ELF.relocationSize) }
        )
        // Consecutive relocations are near each other, so the last one's segment is tried first.
        var segment = segments[0]
        for table in relocationTables {
            var entry = table.lowerBound
            while entry < table.upperBound {
                let address = file.load(UInt64.self, at: entry)
                let information = file.load(UInt64.self, at: entry + 8)
                let addend = file.load(Int64.self, at: entry + 16)
                entry += ELF.relocationSize

                let type = UInt32(truncatingIfNeeded: information)
                guard type != ELF.RelocationType.none else { continue }
                let value = try relocationValue(type, symbolIndex: information >> 32, addend: addend)
                let offset = address &- base
                if !(offset >= segment.address && offset < segment.end) {
                    guard let index = segments.index(containing: offset) else {
                        throw refusal("its relocation at \(hexadecimal(address)) is outside its segments")
                    }
                    segment = segments[index]
                }
                guard segment.end - offset >= 8 else {
                    throw refusal("its relocation at \(hexadecimal(address)) reaches beyond its segment")
                }
                guard segment.permissions.contains(.write) else {
                    throw refusal(
                        "its relocation at \(hexadecimal(address)) is in a read-only segment; compile with -fPIC"
                    )
                }
                relocations.append(GuestModule.Relocation(offset: offset, value: value))
            }
        }
    }

    /// What a relocation writes (AMD64 ABI supplement, 4.4.1).
    private func relocationValue(
        _ type: UInt32,
        symbolIndex: UInt64,
        addend: Int64
    ) throws(SandboxError) -> GuestModule.Relocation.Value {
        let unsignedAddend = UInt64(bitPattern: addend)
        switch type {
        case ELF.RelocationType.relative:
            return .image(unsignedAddend &- base)
        case ELF.RelocationType.absolute64, ELF.RelocationType.globalData, ELF.RelocationType.jumpSlot:
            return try addressValue(type, symbolIndex: symbolIndex, addend: addend)
        case ELF.RelocationType.threadLocalModule:
            // A module's number is the loader's choice. It is the distance of the module's block from the thread
            // pointer, so that the number, the offset in the block and the thread pointer add up to an address.
            return .constant(0 &- (try requireThreadLocalStorage(type).distance))
        case ELF.RelocationType.threadLocalOffset:
            _ = try requireThreadLocalStorage(type)
            return .constant(try threadLocalOffset(type, symbolIndex: symbolIndex) &+ unsignedAddend)
        case ELF.RelocationType.threadPointerOffset:
            let distance = try requireThreadLocalStorage(type).distance
            return .constant(try threadLocalOffset(type, symbolIndex: symbolIndex) &+ unsignedAddend &- distance)
        default:
            let name = ELF.RelocationType.name(of: type)
            guard symbolIndex > 0, let symbol = symbol(symbolIndex) else {
                throw refusal("it has a relocation that is not supported (\(name))")
            }
            throw refusal("it has a relocation that is not supported (\(name), for \(describe(symbol)))")
        }
    }

    /// The address of a symbol, plus an addend.
    private func addressValue(
        _ type: UInt32,
        symbolIndex: UInt64,
        addend: Int64
    ) throws(SandboxError) -> GuestModule.Relocation.Value {
        let unsignedAddend = UInt64(bitPattern: addend)
        guard symbolIndex > 0 else { return .constant(unsignedAddend) }
        guard let symbol = symbol(symbolIndex) else { throw unknownSymbol(type) }
        guard symbol.type != ELF.SymbolType.threadLocal else {
            throw refusal(
                "it takes the address of the thread-local variable \(describe(symbol)) by"
                    + " \(ELF.RelocationType.name(of: type))"
            )
        }
        guard symbol.isUndefined else {
            // An absolute symbol is a number and does not move with the image.
            let isAbsolute = symbol.sectionIndex == ELF.SectionIndex.absolute
            let value = symbol.value &+ unsignedAddend
            return isAbsolute ? .constant(value) : .image(value &- base)
        }
        let index = importIndices[Int(symbolIndex)]
        guard index >= 0 else {
            throw refusal("its undefined symbol \(describe(symbol)) is local")
        }
        // A weak variable: there is nobody who could provide it.
        guard symbol.type != ELF.SymbolType.object else { return .constant(unsignedAddend) }
        return .importAddress(index: Int(index), addend: addend)
    }

    /// The offset of a variable in the module's block. Without a symbol it is in the addend.
    private func threadLocalOffset(_ type: UInt32, symbolIndex: UInt64) throws(SandboxError) -> UInt64 {
        guard symbolIndex > 0 else { return 0 }
        guard let symbol = symbol(symbolIndex) else { throw unknownSymbol(type) }
        guard symbol.type == ELF.SymbolType.threadLocal else {
            throw refusal(
                "\(describe(symbol)) is not thread-local, but \(ELF.RelocationType.name(of: type)) refers to it"
            )
        }
        return symbol.value
    }

    private func requireThreadLocalStorage(
        _ type: UInt32
    ) throws(SandboxError) -> GuestModule.ThreadLocalStorage {
        guard let threadLocalStorage else {
            throw refusal(
                "it has a \(ELF.RelocationType.name(of: type)) relocation, but no thread-local variables (PT_TLS)"
            )
        }
        return threadLocalStorage
    }

    private func symbol(_ index: UInt64) -> ELFSymbol? {
        guard index < UInt64(importIndices.count) else { return nil }
        return ELFSymbol(file, at: symbols.lowerBound + index * ELF.symbolSize)
    }

    private func unknownSymbol(_ type: UInt32) -> SandboxError {
        refusal("a \(ELF.RelocationType.name(of: type)) relocation refers to a symbol that does not exist")
    }
}
