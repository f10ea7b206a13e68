/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.berths

import dev.tideline.core.InMemoryStore
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Store
import dev.tideline.core.Window
import dev.tideline.core.into
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.then
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId
import dev.tideline.ships.ShipKind

/** Identifies a berth along the quay. */
@JvmInline
value class BerthId(val raw: String) {
    override fun toString(): String = raw
}

/** Identifies the stay of one ship at one berth. */
@JvmInline
value class StayId(val raw: String) {
    override fun toString(): String = raw
}

/** Describes a berth and what it can take. */
data class Berth(
    val id: BerthId,
    val length: Metres,
    val depth: Metres,
    val kinds: Set<ShipKind>,
) {
    /** Accepts the ship, or refuses with the first thing that does not fit. */
    fun accept(ship: Ship, keelRoom: Metres): Outcome<Berth> =
        requireThat(ship.kind in kinds, Reason.FORBIDDEN) { "berth $id takes no ${ship.kind}" }
            .then {
                requireThat(ship.length <= length, Reason.INVALID) { "${ship.name} is too long for $id" }
            }
            .then {
                requireThat(ship.draught + keelRoom <= depth, Reason.UNSAFE) {
                    "${ship.name} draws ${ship.draught} but berth $id has $depth"
                }
            }
            .into { this }
}

/** Holds a berth for a ship during a window. */
data class BerthStay(
    val id: StayId,
    val berth: BerthId,
    val ship: ShipId,
    val window: Window,
)

/** Keeps the berths of the harbour. */
interface BerthStore : Store<BerthId, Berth> {
    /** Lists the berths that take a kind of ship, shortest first. */
    fun listTaking(kind: ShipKind): List<Berth>
}

/** Keeps the berths in memory. */
class InMemoryBerthStore : InMemoryStore<BerthId, Berth>("berth", Berth::id), BerthStore {
    override fun listTaking(kind: ShipKind): List<Berth> =
        listWhere { kind in it.kinds }.sortedBy { it.length }
}

/** Keeps the stays, both planned and past. */
interface BerthStayStore : Store<StayId, BerthStay> {
    /** Lists the stays at a berth that overlap the window. */
    fun listAt(berth: BerthId, window: Window): List<BerthStay>

    /** Finds the stay of the ship that goes on at the moment. */
    fun findCurrent(ship: ShipId, moment: Moment): Outcome<BerthStay>
}

/** Keeps the stays in memory. */
class InMemoryBerthStayStore : InMemoryStore<StayId, BerthStay>("stay", BerthStay::id), BerthStayStore {
    override fun listAt(berth: BerthId, window: Window): List<BerthStay> =
        listWhere { it.berth == berth && it.window.overlaps(window) }.sortedBy { it.window.from }

    override fun findCurrent(ship: ShipId, moment: Moment): Outcome<BerthStay> =
        requireFound(listWhere { it.ship == ship && moment in it.window }.firstOrNull()) {
            "ship $ship is at no berth"
        }
}
