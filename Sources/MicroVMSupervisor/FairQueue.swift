/// Calls that wait for their turn: those of the highest priority first, and among these in turn for each group, and
/// within a group in the order in which they came, so far as their modules have room.
struct FairQueue {
    /// The calls of one group and one module.
    private struct Lane {
        let module: RegisteredModule
        var calls: [SupervisedCall]
    }

    private struct Group {
        let name: String?
        var lanes: [Lane]
    }

    private struct Level {
        let priority: Int
        /// In the order in which they have their turns; whoever has had one goes to the end.
        var groups: [Group]
    }

    /// The highest priority first.
    private var levels: [Level] = []
    private(set) var count = 0
    /// How many bytes the calls' arguments have.
    private(set) var bytes = 0

    mutating func insert(_ call: SupervisedCall, group name: String?) {
        count += 1
        bytes += call.argumentSize
        let priority = call.request.priority
        let level = levels.firstIndex { $0.priority <= priority } ?? levels.count
        if level == levels.count || levels[level].priority != priority {
            levels.insert(Level(priority: priority, groups: []), at: level)
        }
        guard let group = levels[level].groups.firstIndex(where: { $0.name == name }) else {
            levels[level].groups.append(Group(name: name, lanes: [Lane(module: call.module, calls: [call])]))
            return
        }
        if let lane = levels[level].groups[group].lanes.firstIndex(where: { $0.module === call.module }) {
            levels[level].groups[group].lanes[lane].calls.append(call)
        } else {
            levels[level].groups[group].lanes.append(Lane(module: call.module, calls: [call]))
        }
    }

    /// The next call whose module has room.
    mutating func next(where hasRoom: (RegisteredModule) -> Bool) -> SupervisedCall? {
        for level in levels.indices {
            for group in levels[level].groups.indices {
                let lanes = levels[level].groups[group].lanes
                let best = lanes.indices.filter { hasRoom(lanes[$0].module) }
                    .min { lanes[$0].calls[0].id < lanes[$1].calls[0].id }
                guard let best else { continue }
                return take(0, lane: best, group: group, level: level, isTurn: true)
            }
        }
        return nil
    }

    mutating func remove(_ call: SupervisedCall) {
        for level in levels.indices where levels[level].priority == call.request.priority {
            for group in levels[level].groups.indices {
                for lane in levels[level].groups[group].lanes.indices {
                    let calls = levels[level].groups[group].lanes[lane].calls
                    guard let index = calls.firstIndex(where: { $0 === call }) else { continue }
                    _ = take(index, lane: lane, group: group, level: level, isTurn: false)
                    return
                }
            }
        }
    }

    private mutating func take(_ index: Int, lane: Int, group: Int, level: Int, isTurn: Bool) -> SupervisedCall {
        count -= 1
        let call = levels[level].groups[group].lanes[lane].calls.remove(at: index)
        bytes -= call.argumentSize
        if levels[level].groups[group].lanes[lane].calls.isEmpty { levels[level].groups[group].lanes.remove(at: lane) }
        if levels[level].groups[group].lanes.isEmpty {
            levels[level].groups.remove(at: group)
            if levels[level].groups.isEmpty { levels.remove(at: level) }
        } else if isTurn {
            let group = levels[level].groups.remove(at: group)
            levels[level].groups.append(group)
        }
        return call
    }
}
